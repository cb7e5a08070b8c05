"""A video ViT of 0.2 M parameters that names the motion of a digit, of which a single frame says nothing.

data       dtem shards make moving_digits data/moving_digits --train 12000
command    dtem train configs/moving_digits_vit.py
source     none: this project's own; tubelets, fixed positions and joint attention as in VideoMAE
hardware   2 CPU cores, about 5 minutes
expected   94.5 % top-1 (2000 validation clips; benchmarks/records/moving_digits_dtem_vs_tome.json)
"""

_base_ = ["_base_/task/moving_digits.py", "_base_/schedule/digits.py", "_base_/engine/local_cpu.py"]
backbone = dict(
    name="vit_tiny_patch16_224",
    img_size=32,
    frames=8,
    tubelet=2,
    options=dict(patch_size=8, embed_dim=64, depth=4, num_heads=2),
)
train = dict(mode="backbone", steps=2000, log_every=200, eval_every=1000)
output = "runs/{{ fileBasenameNoExtension }}"
