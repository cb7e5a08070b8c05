"""DTEM on a frozen DeiT-Small: only the metric embeddings are trained.

command    deepspeed --num_gpus 8 launch/train.py --config configs/imagenet_deit_small_dtem_modular.py
then       dtem sweep runs/imagenet_deit_small_dtem_modular
source     training on frozen weights: DTEM, arXiv 2412.10569; what images undergo: see
           _base_/task/imagenet.py
differs    the rates that the paper does not give are ours (_base_/schedule/)
hardware   8 GPUs for the paper's global batch of 1024; memory not measured: on small ones, halve batch_size
           and double accumulation
expected   79.85 top-1 at -37.2 % MACs, r = 12 (DTEM, arXiv 2412.10569, abstract, which does not name the
           training mode); unmerged: 79.8 top-1 (DeiT, arXiv 2012.12877), which merging approaches from below
"""

_base_ = [
    "_base_/merging/dtem_paper.py",
    "_base_/task/imagenet.py",
    "_base_/schedule/dtem_modular.py",
    "_base_/engine/deepspeed.py",
]
backbone = dict(name="deit_small_patch16_224.fb_in1k", pretrained=True)
output = "runs/{{ fileBasenameNoExtension }}"
