"""A ViT of 2.9 M parameters on CIFAR-10, unmerged: the backbone that cifar10_vit_dtem.py freezes.

data       CIFAR-10 as shards in data/cifar10 (dtem shards make imagefolder PATH data/cifar10)
command    dtem train --config configs/cifar10_vit.py
hardware   2 CPU cores
expected   to be measured
"""

_base_ = ["_base_/task/cifar10.py", "_base_/engine/local_cpu.py"]
backbone = dict(
    name="vit_tiny_patch16_224",
    img_size=32,
    drop_path=0.05,
    options=dict(patch_size=4, embed_dim=192, depth=8, num_heads=6, mlp_ratio=3),
)
optim = dict(lr=1e-3, min_lr=1e-5, warmup_steps=500, weight_decay=0.05, clip_grad=1.0)
train = dict(mode="backbone", epochs=20, eval_every=1760, save_every=880)
output = "runs/{{ fileBasenameNoExtension }}"
