"""DeiT-Small with 16 semantic tokens (STViT) on ImageNet-1k, from chance.

command    deepspeed --num_gpus 8 launch/train.py --config configs/imagenet_deit_small_stvit.py
then       dtem evaluate runs/imagenet_deit_small_stvit
dense      merging.options.recovery=True (STViT-R): behind the last block patches attend to the semantic
           tokens, and a head reads their grid
source     STViT (Chang et al., CVPR 2023, arXiv 2303.08685): 16 semantic tokens replace the patches of a
           DeiT; recipe of the authors' STViT-R code: AdamW at 5e-4 for 512 images, weight decay 0.05, clipped
           at 5, mixup 0.8, cutmix 1.0, 300 epochs, batches of 128 on 8 GPUs
differs    the code is of STViT-R in a Swin, so their place is ours: behind the attention of block 3 (from 0),
           which spares the share of the MACs that the paper states; stochastic depth of DeiT-Small, 0.1,
           where the Swin's is 0.3; its class token is read; no repeated augmentation
hardware   8 GPUs; memory not measured: on small ones, halve batch_size and double engine.accumulation
expected   as DeiT-Small, 79.8 top-1, at about 60 % fewer MACs (the paper's abstract); not run here. The
           factors of the added branches start at 1e-5, so do not judge by the first epochs
"""

_base_ = ["_base_/task/imagenet.py", "_base_/engine/deepspeed.py"]
backbone = dict(name="deit_small_patch16_224", drop_path=0.1)
merging = dict(policy="stvit", reduction=[0, 0, 0, 180], options=dict(block=3))
optim = dict(lr=1e-3, min_lr=1e-5, warmup_epochs=20, weight_decay=0.05, clip_grad=5.0)
train = dict(mode="joint", epochs=300, eval_every=12510, save_every=1251)
output = "runs/{{ fileBasenameNoExtension }}"
