"""A small ViT that names the largest digit of a 64x64 scene, unmerged.

data       dtem shards make digit_scenes data/digits --train 12000
command    dtem train configs/digits_vit.py
source     none: this project's own
hardware   2 CPU cores, about 4 minutes
expected   about 75 % top-1 after 4000 steps
"""

_base_ = [
    "_base_/backbone/digits_vit.py",
    "_base_/task/digits.py",
    "_base_/schedule/digits.py",
    "_base_/engine/local_cpu.py",
]
tasks = dict(digits=dict(data=dict(batch_size=32)))
train = dict(mode="backbone", steps=4000, log_every=200, eval_every=1000)
output = "runs/{{ fileBasenameNoExtension }}"
