"""DTEM on the frozen CIFAR-10 ViT, taught what merging costs.

command    dtem train configs/cifar10_vit_dtem.py      (after configs/cifar10_vit.py)
then       dtem sweep runs/cifar10_vit_dtem
source     docs/merge_cost.md
differs    a model of this size
hardware   1 CPU core, about a minute
expected   benchmarks/records/cifar10_dtem_vs_tome.json; the choice of recipe:
           benchmarks/records/cifar10_recipes.json
"""

_base_ = ["cifar10_vit.py", "_base_/merging/dtem.py"]
backbone = dict(weights="runs/cifar10_vit")
merging = dict(reduction=2)
tasks = dict(cifar10=dict(data=dict(batch_size=128)))
engine = dict(precision="fp32")
optim = dict(_delete_=True, lr=2e-3, min_lr=1e-5, warmup_steps=10, weight_decay=1e-4, clip_grad=5.0)
train = dict(_delete_=True, mode="modular", steps=400, reduction_range=(1, 6))
output = "runs/{{ fileBasenameNoExtension }}"
