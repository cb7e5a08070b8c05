"""One small ViT for CIFAR-10's classes, captions of scenes of its photographs, and CamVid's streets, each at
its own size; unmerged.

data       data/cifar10, data/cifar_scenes, data/camvid: see cifar10_vit.py,
           scenes_captioning.py, camvid_segmenter_vit_tiny.py
command    dtem train configs/cifar_multitask.py
           or, on both cores: deepspeed --num_accelerators 2 launch/train.py \
               --config configs/cifar_multitask.py --cfg-options engine.type=deepspeed \
               tasks.cifar10.data.batch_size=32 tasks.scenes_captioning.data.batch_size=16 \
               tasks.camvid.data.batch_size=4
source     none: this project's own
hardware   2 CPU cores, about an hour and a half
expected   to be measured; after half an epoch (352 steps) top-1 35.7 %, CIDEr 1.34, mIoU 21.0
           (one run). Alone: the configs named above

A step holds 64 photographs, 32 scenes and 8 frames. An epoch is 704 steps, CIFAR-10's; the other sets come
around more often.
"""

_base_ = ["_base_/backbone/cifar_vit.py", "_base_/engine/local_cpu.py"]
backbone = dict(img_size=64)
engine = dict(precision="bf16", zero_stage=0)
tasks = dict(
    _base_=["cifar10_vit.py", "scenes_captioning.py", "camvid_segmenter_vit_tiny.py"],
    scenes_captioning=dict(data=dict(batch_size=32)),
    camvid=dict(data=dict(batch_size=8)),
)
optim = dict(lr=1e-3, min_lr=1e-5, warmup_steps=300, weight_decay=0.05, betas=(0.9, 0.99), clip_grad=1.0)
train = dict(mode="backbone", epochs=6, eval_every=704, save_every=704)
output = "runs/{{ fileBasenameNoExtension }}"
