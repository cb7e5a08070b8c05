"""A ViT of 1.2 M parameters on CIFAR-10, unmerged: the backbone that cifar10_vit_dtem.py freezes.

data       CIFAR-10 as shards in data/cifar10 (dtem shards make imagefolder PATH data/cifar10)
command    dtem train configs/cifar10_vit.py
           or, on both cores: deepspeed --num_accelerators 2 launch/train.py --config configs/cifar10_vit.py \
               --cfg-options engine.type=deepspeed tasks.cifar10.data.batch_size=32
source     none: this project's own, the smallest backbone that comparisons need
hardware   2 CPU cores, about ten minutes
expected   benchmarks/records/cifar10_dtem_vs_tome.json, the unmerged score

Patches of 8 pixels: with smaller ones merging costs so little until half the MACs are gone that comparisons
compare noise (docs/log.md).
"""

_base_ = ["_base_/backbone/cifar_vit.py", "_base_/task/cifar10.py", "_base_/engine/local_cpu.py"]
backbone = dict(img_size=32)
engine = dict(precision="bf16", zero_stage=0)
tasks = dict(cifar10=dict(data=dict(batch_size=64), head=dict(label_smoothing=0.05)))
optim = dict(lr=1e-3, min_lr=1e-5, warmup_steps=300, weight_decay=0.05, betas=(0.9, 0.99), clip_grad=1.0)
train = dict(mode="backbone", epochs=8, eval_every=1406, save_every=703)
output = "runs/{{ fileBasenameNoExtension }}"
