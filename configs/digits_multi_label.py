"""A small ViT that names all digits of a 64x64 scene, of which there are one to three, unmerged.

data       dtem shards make digit_scenes data/digits --train 12000
command    dtem train configs/digits_multi_label.py
source     none: this project's own
hardware   2 CPU cores, about 5 minutes
expected   63 % mAP and 51 % F1_micro after 4000 steps, of 500 scenes

Any images with several classes each are trained on so: `type="multi_label"` reads lists of classes from
`json`, or from a table (docs/data.md#several-classes-of-an-image).
"""

_base_ = [
    "_base_/backbone/digits_vit.py",
    "_base_/task/digits.py",
    "_base_/schedule/digits.py",
    "_base_/engine/local_cpu.py",
]
tasks = dict(
    digits=dict(
        type="multi_label", head=dict(loss="asymmetric"), data=dict(schema="multi_label", batch_size=32)
    )
)
train = dict(mode="backbone", steps=4000, log_every=200, eval_every=1000)
output = "runs/{{ fileBasenameNoExtension }}"
