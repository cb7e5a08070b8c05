"""DTEM under the frozen ViT and heads of the digits: one embedding learns what merging costs all three tasks.
Second half of `make demo`.

command    make demo, or: dtem train configs/digits_multitask_dtem.py      (after
           configs/digits_multitask.py)
then       dtem sweep runs/digits_multitask_dtem --within 0.5; dtem visualise runs/digits_multitask_dtem
source     none: this project's own; the embeddings learn by docs/merge_cost.md
hardware   1 CPU core, about 2 minutes
expected   benchmarks/records/digits_multitask_dtem_vs_tome.json

At half of the MACs the first two blocks remove two thirds of the tokens, so all of these merges are
priced, not the cheapest alone (docs/merge_cost.md).
"""

_base_ = ["digits_multitask.py", "_base_/merging/dtem.py"]
backbone = dict(weights="runs/digits_multitask")
merging = dict(reduction=0, target_macs=0.5, within=0.5)
objective = dict(options=dict(pairs="merged"))
optim = dict(_delete_=True, lr=2e-3, min_lr=1e-5, warmup_steps=10, weight_decay=1e-4, clip_grad=5.0)
train = dict(_delete_=True, mode="modular", steps=300, reduction_range=(8, 24))
output = "runs/{{ fileBasenameNoExtension }}"
