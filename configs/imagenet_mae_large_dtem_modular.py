"""DTEM on a frozen, fine-tuned MAE ViT-Large, which pools the average of the patches.

Sizes weigh the attention in training and not in inference, as in the paper's MAE experiments.

weights    mae_finetuned_vit_large.pth, from the fine-tuning table of github.com/facebookresearch/mae, into
           weights/
command    deepspeed --num_gpus 8 launch/train.py --config configs/imagenet_mae_large_dtem_modular.py
then       dtem sweep runs/imagenet_mae_large_dtem_modular
source     training on frozen weights: DTEM, arXiv 2412.10569; what images undergo, in MAE's fine-tuning too:
           _base_/task/imagenet.py
differs    the rates that the paper does not give are ours (_base_/schedule/)
hardware   8 GPUs for the paper's global batch of 1024; memory not measured: on small ones, halve batch_size
           and double accumulation
expected   no published figure for this setting that we could check; merged: to be measured
           unmerged: 85.9 top-1 (MAE, arXiv 2111.06377), which merging approaches from below
"""

_base_ = [
    "_base_/merging/dtem_paper.py",
    "_base_/task/imagenet.py",
    "_base_/schedule/dtem_modular.py",
    "_base_/engine/deepspeed.py",
]
backbone = dict(
    name="vit_large_patch16_224.mae",  # whose pixels are ImageNet's
    weights="weights/mae_finetuned_vit_large.pth",
    proportional_attention="train",
    options=dict(global_pool="avg"),
)
merging = dict(reduction=8)  # 24 blocks
engine = dict(accumulation=2)
tasks = dict(imagenet=dict(data=dict(batch_size=64)))
output = "runs/{{ fileBasenameNoExtension }}"
