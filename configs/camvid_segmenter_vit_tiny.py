"""Segmenter with a ViT of 1.4 M parameters on CamVid at a third of its size, unmerged: what
camvid_segmenter_vit_tiny_dtem.py freezes.

data       CamVid as shards in data/camvid (dtem shards make camvid PATH data/camvid)
start      the ViT of cifar10_vit.py; without it: --cfg-options backbone.weights=None
command    dtem train configs/camvid_segmenter_vit_tiny.py or, on both cores: deepspeed
           --num_accelerators 2 launch/train.py --config configs/camvid_segmenter_vit_tiny.py \
               --cfg-options engine.type=deepspeed tasks.camvid.data.batch_size=8
source     Segmenter's head, arXiv 2105.05633
differs    a ViT and pictures of this size, AdamW and its rates: ours
hardware   2 CPU cores, about half an hour
expected   benchmarks/records/camvid_dtem_vs_tome.json, the unmerged score

360x480 become 120x160: 15x20 patches of 8 pixels, a whole frame is one input, so that what is learned about
the place of sky and road holds in evaluation.
"""

_base_ = ["_base_/backbone/cifar_vit.py", "_base_/task/camvid.py", "_base_/engine/local_cpu.py"]
backbone = dict(img_size=(120, 160), weights="runs/cifar10_vit")
engine = dict(precision="bf16", zero_stage=0)
tasks = dict(
    camvid=dict(
        data=dict(img_size=(120, 160), batch_size=16, augment=dict(short_side=120, resize_range=(0.75, 1.6))),
        head=dict(
            decode_head=dict(
                type="SegmenterMaskTransformerHead",
                channels=128,
                num_layers=1,
                num_heads=4,
                embed_dims=128,
                dropout_ratio=0.0,
                drop_path_rate=0.0,
            )
        ),
    )
)
optim = dict(lr=1.5e-3, min_lr=1e-5, warmup_steps=100, weight_decay=0.05, betas=(0.9, 0.99), clip_grad=1.0)
train = dict(mode="backbone", steps=2000, eval_every=500, save_every=250)
output = "runs/{{ fileBasenameNoExtension }}"
