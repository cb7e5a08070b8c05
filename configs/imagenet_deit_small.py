"""DeiT-Small on ImageNet-1k from chance, unmerged: 300 epochs by DeiT's recipe.

data       dtem shards make imagefolder PATH/TO/imagenet data/imagenet; or timm's WebDataset shards
           (imagenet1k-train-{0000..1023}.tar) as tasks.imagenet.data.train, and the validation ones as .val
command    deepspeed --num_gpus 8 launch/train.py --config configs/imagenet_deit_small.py
source     DeiT, arXiv 2012.12877, table 9, and the defaults of its training script: AdamW at 1e-3 for 1024
           images, cosine to 1e-5, 5 epochs of warm-up, weight decay 0.05, stochastic depth 0.1, unclipped,
           no average of the weights; images: _base_/task/imagenet.py, with repeated augmentation (3)
differs    1008 images in a step, as 3 views of 42 samples on each GPU, which the script takes on three GPUs;
           an epoch has each sample thrice, so 100 are its 300 (381,300 steps for its 375,300); the rate moves
           in each step, not each epoch, and its warm-up starts at lr / steps, not at 1e-6; position
           embedding and class token have weight decay; bf16 in place of fp16
hardware   8 GPUs; memory not measured: on small ones, halve batch_size and double engine.accumulation
expected   79.8 top-1 (DeiT, arXiv 2012.12877); not run here
"""

_base_ = ["_base_/task/imagenet.py", "_base_/engine/deepspeed.py"]
backbone = dict(name="deit_small_patch16_224", drop_path=0.1)
tasks = dict(imagenet=dict(data=dict(batch_size=42, views=3)))
optim = dict(lr=1e-3, min_lr=1e-5, warmup_epochs=5 / 3, weight_decay=0.05, clip_grad=None)
train = dict(mode="backbone", epochs=100, eval_every=12710, save_every=3813)
output = "runs/{{ fileBasenameNoExtension }}"
