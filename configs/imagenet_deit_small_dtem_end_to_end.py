"""DTEM and DeiT-Small trained together: the backbone learns to live with merged tokens.

command    deepspeed --num_gpus 8 launch/train.py --config configs/imagenet_deit_small_dtem_end_to_end.py
then       dtem sweep runs/imagenet_deit_small_dtem_end_to_end
source     alternation and epochs: DTEM, arXiv 2412.10569; what images undergo: see _base_/task/imagenet.py
differs    learning rates and the average of the weights are ours (_base_/schedule/dtem_end_to_end.py)
hardware   8 GPUs for the paper's global batch of 1024; memory not measured: on small ones, halve batch_size
           and double accumulation
expected   79.85 top-1 at -37.2 % MACs, r = 12 (DTEM, arXiv 2412.10569, abstract, which does not name the
           training mode); unmerged DeiT-Small: 79.8 top-1 (DeiT, arXiv 2012.12877)
"""

_base_ = [
    "_base_/merging/dtem_paper.py",
    "_base_/task/imagenet.py",
    "_base_/schedule/dtem_end_to_end.py",
    "_base_/engine/deepspeed.py",
]
backbone = dict(name="deit_small_patch16_224.fb_in1k", pretrained=True, drop_path=0.1)
merging = dict(reduction=12)
output = "runs/{{ fileBasenameNoExtension }}"
