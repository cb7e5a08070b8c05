"""Which pixels are which digit's ink: a small ViT, Segmenter's decoder and DTEM learn together on embedded data, in one command.

data       dtem shards make digit_scenes data/digits --train 12000
command    dtem train --config configs/digits_segmentation.py
then       dtem sweep runs/digits_segmentation; dtem visualise runs/digits_segmentation
hardware   1 CPU core, about 10 minutes by the speed of its first 200 steps
expected   to be measured; 90 % of the pixels are ground, so read mIoU, not aAcc
"""

_base_ = ["_base_/merging/dtem.py", "_base_/task/digits_segmentation.py", "_base_/engine/local_cpu.py"]
backbone = dict(
    name="vit_tiny_patch16_224",
    img_size=64,
    options=dict(patch_size=4, embed_dim=64, depth=4, num_heads=2, class_token=False, global_pool="avg"),
)
merging = dict(reduction=32)
engine = dict(threads=1)  # two OpenMP threads wait for each other in layers this small
tasks = dict(
    digits_segmentation=dict(
        head=dict(
            decode_head=dict(
                type="SegmenterMaskTransformerHead",
                channels=64,
                num_layers=1,
                num_heads=2,
                embed_dims=64,
                drop_path_rate=0.0,
                dropout_ratio=0.0,
            )
        ),
        data=dict(batch_size=16),
    )
)
optim = dict(lr=2e-3, min_lr=1e-5, warmup_steps=200, weight_decay=0.05, betas=(0.9, 0.99), clip_grad=1.0)
train = dict(mode="end_to_end", steps=3000, alternate_period=5, log_every=200)
output = "runs/{{ fileBasenameNoExtension }}"
