"""DeiT-Small fine-tuned to merge by MCTF, with its consistency of two reductions.

command    deepspeed --num_gpus 8 launch/train.py --config configs/imagenet_deit_small_mctf.py
then       dtem sweep runs/imagenet_deit_small_mctf --policy mctf,tome
source     MCTF (Lee, Choi & Kim, CVPR 2024), its script: r = 16 in all blocks but the first, 30 epochs from
           DeiT's weights at 3e-5 for 1024 images, cosine to 1e-6, no warm-up, no mixtures, repeated
           augmentation (3), stochastic depth 0.1; images else as in _base_/task/imagenet.py
differs    no ten epochs of cool-down behind; 1008 images in a step, as 3 views of 42 samples on each GPU, so
           that 10 epochs are 30; the least number of tokens is that of the schedule; the teacher's reduction
           is drawn as finely as tokens are, and not a whole number for each block
hardware   8 GPUs; a step takes two passes; memory not measured: on small ones, halve batch_size and double
           engine.accumulation
expected   80.1 top-1 at 2.60 GMACs (MCTF's README); not run here
           unmerged: 79.8 top-1 (DeiT, arXiv 2012.12877)
"""

_base_ = ["_base_/task/imagenet.py", "_base_/engine/deepspeed.py"]
backbone = dict(name="deit_small_patch16_224.fb_in1k", pretrained=True, drop_path=0.1)
merging = dict(policy="mctf", reduction=[0] + [16] * 11)
objective = dict(type="consistency")
tasks = dict(imagenet=dict(data=dict(batch_size=42, views=3, augment=dict(mixup=0.0, cutmix=0.0))))
optim = dict(lr=3e-5, min_lr=1e-6, warmup_steps=0, weight_decay=0.05, clip_grad=None)
train = dict(mode="backbone", epochs=10, eval_every=2542, save_every=1271)
output = "runs/{{ fileBasenameNoExtension }}"
