"""One ViT learns from digit scenes the largest digit, a sentence and every pixel's digit, together: the first
half of `make demo`.

data       dtem shards make digit_scenes data/digits --train 12000
command    make demo, or: dtem train configs/digits_multitask.py
then       configs/digits_multitask_dtem.py
source     none: this project's own
hardware   1 CPU core, about 12 minutes; the demo takes 1500 of the 2500 steps, in two processes
expected   benchmarks/records/digits_multitask.json
"""

_base_ = ["_base_/backbone/digits_vit.py", "_base_/schedule/digits.py", "_base_/engine/local_cpu.py"]
tasks = dict(_base_=["digits_vit.py", "digits_captioning.py", "digits_segmentation.py"])
train = dict(mode="backbone", steps=2500, log_every=250)
output = "runs/{{ fileBasenameNoExtension }}"
