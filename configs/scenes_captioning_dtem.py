"""DTEM under a frozen captioner of scenes: the embedding learns what merging costs the words.

command    dtem train configs/scenes_captioning_dtem.py      (after configs/scenes_captioning.py)
then       dtem sweep runs/scenes_captioning_dtem --macs 0.7,0.5
source     docs/merge_cost.md
differs    a model of this size, and a higher temperature
hardware   1 CPU core, about five minutes
expected   benchmarks/records/scenes_captioning_dtem_vs_tome.json

With 65 tokens and half of the MACs to save, most merges are not of the cheapest pairs: a higher
temperature prices more of them (docs/log.md).
"""

_base_ = ["scenes_captioning.py", "_base_/merging/dtem.py"]
backbone = dict(weights="runs/scenes_captioning")
merging = dict(reduction=6)
objective = dict(options=dict(temperature=0.3))
engine = dict(precision="fp32")
optim = dict(_delete_=True, lr=2e-3, min_lr=1e-5, warmup_steps=10, weight_decay=1e-4, clip_grad=5.0)
train = dict(_delete_=True, mode="modular", steps=400, reduction_range=(4, 18))
output = "runs/{{ fileBasenameNoExtension }}"
