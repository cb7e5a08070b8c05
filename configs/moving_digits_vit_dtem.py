"""DTEM on the frozen video ViT of moving digits, taught what merging costs.

command    dtem train configs/moving_digits_vit_dtem.py      (after configs/moving_digits_vit.py)
then       dtem sweep runs/moving_digits_vit_dtem --policy random,tome,vid_tldr,dtem_untrained,dtem
source     docs/merge_cost.md
differs    a model of this size
hardware   1 CPU core, about two minutes
expected   93.8 % top-1 at half of the MACs, ToMe 93.2 (benchmarks/records/moving_digits_dtem_vs_tome.json)
"""

_base_ = ["moving_digits_vit.py", "_base_/merging/dtem.py"]
backbone = dict(weights="runs/moving_digits_vit")
merging = dict(reduction=12)
optim = dict(_delete_=True, lr=2e-3, min_lr=1e-5, warmup_steps=10, weight_decay=1e-4, clip_grad=5.0)
train = dict(_delete_=True, mode="modular", steps=400, reduction_range=(4, 18))
output = "runs/{{ fileBasenameNoExtension }}"
