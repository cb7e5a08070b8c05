"""A small ViT that names the largest digit of a 64x64 scene, unmerged: the first half of `make demo`.

data       dtem shards make digit_scenes data/digits --train 12000
command    dtem train --config configs/digits_vit.py
hardware   2 CPU cores, about 4 minutes
expected   about 75 % top-1 after 4000 steps
"""

_base_ = ["_base_/task/digits.py", "_base_/engine/local_cpu.py"]
backbone = dict(
    name="vit_tiny_patch16_224",
    img_size=64,
    options=dict(patch_size=8, embed_dim=64, depth=4, num_heads=2, class_token=False, global_pool="avg"),
)
engine = dict(threads=1)  # two OpenMP threads wait for each other in layers this small
tasks = dict(digits=dict(data=dict(batch_size=32)))
optim = dict(lr=2e-3, min_lr=1e-5, warmup_steps=200, weight_decay=0.05, betas=(0.9, 0.99), clip_grad=1.0)
train = dict(mode="backbone", steps=4000, log_every=200, eval_every=1000)
output = "runs/{{ fileBasenameNoExtension }}"
