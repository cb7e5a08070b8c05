"""DTEM on the frozen digits ViT: the second half of `make demo`.

command    make demo, or: dtem train --config configs/digits_demo.py      (after configs/digits_vit.py)
then       dtem sweep runs/digits_demo; dtem visualise runs/digits_demo
hardware   2 CPU cores, less than a minute
expected   docs/images/demo_sweep.png
"""

_base_ = ["digits_vit.py", "_base_/merging/dtem.py"]
backbone = dict(weights="runs/digits_vit")
merging = dict(reduction=10)
tasks = dict(digits=dict(data=dict(batch_size=64)))
optim = dict(_delete_=True, lr=2e-3, min_lr=1e-5, warmup_steps=10, weight_decay=1e-4, clip_grad=5.0)
train = dict(_delete_=True, mode="modular", steps=300, reduction_range=(4, 24), log_every=50)
output = "runs/{{ fileBasenameNoExtension }}"
