"""DTEM on a frozen DeiT-Small, by this project's own recipe: prices of merges, any reduction from one
training.

command    deepspeed --num_gpus 8 launch/train.py --config configs/imagenet_deit_small_dtem_merge_cost.py
then       dtem sweep runs/imagenet_deit_small_dtem_merge_cost
source     docs/merge_cost.md; what images undergo: see _base_/task/imagenet.py
differs    no mixtures of images, whose merges would be priced too
hardware   8 GPUs for a global batch of 1024
expected   to be measured; on CIFAR-10 against other recipes: benchmarks/records/cifar10_recipes.json
           unmerged: 79.8 top-1 (DeiT, arXiv 2012.12877), which merging approaches from below
"""

_base_ = [
    "_base_/merging/dtem.py",
    "_base_/task/imagenet.py",
    "_base_/engine/deepspeed.py",
]
backbone = dict(name="deit_small_patch16_224.fb_in1k", pretrained=True)
optim = dict(lr=2e-3, min_lr=1e-5, warmup_steps=100, weight_decay=1e-4, clip_grad=5.0)
train = dict(mode="modular", epochs=3, reduction_range=(4, 24), save_every=1251)
tasks = dict(imagenet=dict(data=dict(augment=dict(mixup=0.0, cutmix=0.0))))  # prices are those of real images
output = "runs/{{ fileBasenameNoExtension }}"
