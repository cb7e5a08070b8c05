"""DTEM on the frozen CIFAR-10 ViT, taught by the unmerged model; each step draws its own reduction.

command    dtem train --config configs/cifar10_vit_dtem.py      (after configs/cifar10_vit.py)
then       dtem sweep runs/cifar10_vit_dtem
hardware   2 CPU cores
expected   to be measured
"""

_base_ = ["cifar10_vit.py", "_base_/merging/dtem.py"]
backbone = dict(weights="runs/cifar10_vit", drop_path=0.0)
merging = dict(reduction=7)
objective = dict(type="distill")
optim = dict(_delete_=True, lr=1e-3, min_lr=1e-5, weight_decay=1e-4, clip_grad=5.0)
train = dict(_delete_=True, mode="modular", epochs=3, reduction_range=(4, 16), eval_every=352)
output = "runs/{{ fileBasenameNoExtension }}"
