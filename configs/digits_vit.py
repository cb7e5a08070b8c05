"""A small ViT that names the largest digit of a 64x64 scene, unmerged: the first half of `make demo`.

data       dtem shards make digit_scenes data/digits
command    dtem train --config configs/digits_vit.py
hardware   2 CPU cores
expected   to be measured
"""

_base_ = ["_base_/task/digits.py", "_base_/engine/local_cpu.py"]
backbone = dict(
    name="vit_tiny_patch16_224",
    img_size=64,
    options=dict(patch_size=8, embed_dim=128, depth=6, num_heads=4, mlp_ratio=3),
)
optim = dict(lr=1e-3, min_lr=1e-5, warmup_steps=50, weight_decay=0.05, clip_grad=1.0)
train = dict(mode="backbone", steps=800, log_every=50)
output = "runs/{{ fileBasenameNoExtension }}"
