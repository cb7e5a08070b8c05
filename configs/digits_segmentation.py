"""Which pixels are which digit's ink: Segmenter's decoder on the ViT of digits_vit.py, and DTEM, learn
together.

data       dtem shards make digit_scenes data/digits --train 12000
start      dtem train configs/digits_vit.py; without it: --cfg-options backbone.weights=None, and
           many more steps
command    dtem train configs/digits_segmentation.py
then       dtem sweep runs/digits_segmentation; dtem visualise runs/digits_segmentation
source     none: this project's own; Segmenter's head, arXiv 2105.05633
hardware   1 CPU core, about 3 minutes
expected   mIoU 39.3 % on the 500 validation scenes (one run); nine pixels of ten are ground, so read mIoU,
           not aAcc
"""

_base_ = [
    "_base_/backbone/digits_vit.py",
    "_base_/merging/dtem.py",
    "_base_/task/digits_segmentation.py",
    "_base_/schedule/digits.py",
    "_base_/engine/local_cpu.py",
]
backbone = dict(weights="runs/digits_vit")
merging = dict(reduction=8)
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
                loss_decode=dict(
                    type="CrossEntropyLoss", class_weight=[0.2] + [1.0] * 10
                ),  # nine pixels of ten are ground
            )
        ),
        data=dict(batch_size=32),
    )
)
train = dict(mode="end_to_end", steps=1500, alternate_period=5, log_every=200)
output = "runs/{{ fileBasenameNoExtension }}"
