"""DTEM under a frozen Segmenter on CamVid: the embedding learns what merging costs the unmerged grid.

command    dtem train configs/camvid_segmenter_vit_tiny_dtem.py      (after
           configs/camvid_segmenter_vit_tiny.py)
then       dtem sweep runs/camvid_segmenter_vit_tiny_dtem --merged 0.3,0.5,0.7
source     docs/merge_cost.md
differs    a model of this size
hardware   1 CPU core, about four minutes
expected   benchmarks/records/camvid_dtem_vs_tome.json
"""

_base_ = ["camvid_segmenter_vit_tiny.py", "_base_/merging/dtem.py"]
backbone = dict(weights="runs/camvid_segmenter_vit_tiny")
merging = dict(reduction=25)
engine = dict(precision="fp32")
optim = dict(_delete_=True, lr=2e-3, min_lr=1e-5, warmup_steps=10, weight_decay=1e-4, clip_grad=5.0)
train = dict(_delete_=True, mode="modular", steps=300, reduction_range=(10, 40))
output = "runs/{{ fileBasenameNoExtension }}"
