"""A ViT of 1.2 M parameters with DINOv3's rotary positions and registers on CIFAR-10, unmerged.

data       CIFAR-10 as shards in data/cifar10 (dtem shards make imagefolder PATH data/cifar10)
command    dtem train configs/cifar10_rope_vit.py
           or, on both cores: deepspeed --num_accelerators 2 launch/train.py \
               --config configs/cifar10_rope_vit.py \
               --cfg-options engine.type=deepspeed tasks.cifar10.data.batch_size=32
source     none: this project's own; rotary positions and registers as in DINOv3, arXiv 2508.10104
hardware   2 CPU cores, about twelve minutes
expected   benchmarks/records/rotary_positions.json, the unmerged score

Patches of 4 pixels: 64 of them, so that merged tokens lie apart. fp32, as many CPUs are slow at bf16.
"""

_base_ = ["cifar10_vit.py"]
backbone = dict(
    _delete_=True,
    name="vit_small_patch16_dinov3",
    img_size=32,
    options=dict(patch_size=4, embed_dim=128, depth=6, num_heads=4, global_pool="token"),
)
engine = dict(precision="fp32")
train = dict(epochs=2, eval_every=703, save_every=703)
output = "runs/{{ fileBasenameNoExtension }}"
