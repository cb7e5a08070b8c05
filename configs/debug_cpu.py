"""All the machinery in a few seconds on a CPU: soft merging, alternation, evaluation, a checkpoint. Learns
nothing.

data       dtem shards make digit_scenes data/digits
command    dtem train configs/debug_cpu.py
source     none: this project's own
hardware   1 CPU core
expected   nothing; it is run to see that it runs
"""

_base_ = ["_base_/merging/dtem.py", "_base_/task/digits.py", "_base_/engine/local_cpu.py"]
backbone = dict(
    name="vit_tiny_patch16_224",
    img_size=64,
    options=dict(patch_size=16, embed_dim=48, depth=3, num_heads=3, mlp_ratio=2),
)
merging = dict(reduction=2)
objective = dict(type="supervised")
tasks = dict(digits=dict(data=dict(batch_size=8, workers=0)))
optim = dict(lr=1e-3)
train = dict(mode="end_to_end", steps=8, alternate_period=2, log_every=2, save_every=4)
output = "runs/{{ fileBasenameNoExtension }}"
