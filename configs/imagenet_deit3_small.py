"""DeiT III-Small on ImageNet-1k from chance, unmerged: 800 epochs by DeiT III's recipe.

data       dtem shards make imagefolder PATH/TO/imagenet data/imagenet; or timm's WebDataset shards
           (imagenet1k-train-{0000..1023}.tar) as tasks.imagenet.data.train, and the validation ones as .val
command    deepspeed --num_gpus 8 launch/train.py --config configs/imagenet_deit3_small.py
source     DeiT III, arXiv 2204.07118, and the command of its README_revenge.md for ViT-S: LAMB at 4e-3 for
           2048 images, cosine to 1e-5, 5 epochs of warm-up, weight decay 0.05, stochastic depth 0.05;
           3-Augment with jitter 0.3, mixup 0.8 and cutmix 1, no erasing, no smoothing; binary cross-entropy
           of labels above 0; repeated augmentation (3)
differs    2064 images in a step, as 3 views of 86 samples on each GPU, which the script takes on three GPUs;
           an epoch has each sample thrice, so 266 2/3 are its 800; timm's LAMB in place of apex's, which
           clips the gradient to 1 as clip_grad does here; timm's 3-Augment, whose solarisation starts at
           128 and whose blur is drawn by timm; the rate moves in each step, and its warm-up starts at
           lr / steps; position embedding and class token have weight decay; bf16 in place of fp16
hardware   8 GPUs; memory not measured: on small ones, halve batch_size and double engine.accumulation
expected   81.4 top-1 (README_revenge.md); not run here
"""

_base_ = ["_base_/task/imagenet.py", "_base_/engine/deepspeed.py"]
backbone = dict(name="deit3_small_patch16_224", drop_path=0.05)
tasks = dict(
    imagenet=dict(
        head=dict(loss="binary_cross_entropy", target_threshold=0.0, label_smoothing=0.0),
        data=dict(
            batch_size=86,
            views=3,
            augment=dict(rand_augment="3a", color_jitter=0.3, random_erasing=0.0, crop_pct=1.0),
        ),
    )
)
optim = dict(type="lamb", lr=4e-3, min_lr=1e-5, warmup_epochs=5 / 3, weight_decay=0.05, clip_grad=1.0)
engine = dict(zero_stage=0)  # LAMB needs whole parameters
train = dict(mode="backbone", epochs=800 / 3, eval_every=18620, save_every=1862)
output = "runs/{{ fileBasenameNoExtension }}"
