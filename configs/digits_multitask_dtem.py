"""DTEM under the frozen ViT and heads of the digits: one embedding learns what merging costs all three tasks. Second half of `make demo`.

command    make demo, or: dtem train --config configs/digits_multitask_dtem.py      (after configs/digits_multitask.py)
then       dtem sweep runs/digits_multitask_dtem; dtem visualise runs/digits_multitask_dtem
hardware   1 CPU core, about 2 minutes
expected   benchmarks/records/digits_multitask_dtem_vs_tome.json
"""

_base_ = ["digits_multitask.py", "_base_/merging/dtem.py"]
backbone = dict(weights="runs/digits_multitask")
merging = dict(reduction=8)
optim = dict(_delete_=True, lr=2e-3, min_lr=1e-5, warmup_steps=10, weight_decay=1e-4, clip_grad=5.0)
train = dict(_delete_=True, mode="modular", steps=300, reduction_range=(4, 16))
output = "runs/{{ fileBasenameNoExtension }}"
