"""ImageNet, COCO captions and ADE20K on one ViT-Base whose tokens merge: backbone, three heads and one set of
embeddings learn together.

data       data/imagenet, data/coco_captions, data/ade20k: see _base_/task/{imagenet,coco_captions,ade20k}.py
command    deepspeed --num_gpus 8 launch/train.py --config configs/multitask_vit_base_dtem.py
then       dtem sweep runs/multitask_vit_base_dtem; dtem export runs/multitask_vit_base_dtem --task ade20k
           --out exported
source     none: the tasks' own recipes, as their files say them
differs    ImageNet's and ADE20K's from these in batch, rates and epochs, which are ours
hardware   8 GPUs; memory not measured: on small ones, halve the batch sizes and double engine.accumulation
expected   to be measured

A step holds 512 images of ImageNet, 256 of COCO and 16 of ADE20K; an epoch is ImageNet's, 2503 steps. Each
task has a reduction of its own: 197 tokens lose 13 a block, ADE20K's 1025 tokens 43, which merges half of its
patches. `dtem train` logs the norms and the cosines of the tasks' gradients every 200 steps;
`balancing.type=gradient_norm` lets the norms set the weights.
"""

_base_ = ["_base_/merging/dtem.py", "_base_/engine/deepspeed.py"]
backbone = dict(name="vit_base_patch16_clip_224.openai", pretrained=True, drop_path=0.1)
merging = dict(reduction=13)
balancing = dict(every=200)
tasks = dict(
    _base_=["_base_/task/imagenet.py", "coco_coca_vit_base_dtem.py", "ade20k_upernet_vit_base_dtem.py"],
    imagenet=dict(data=dict(batch_size=64)),
    coco_captions=dict(data=dict(batch_size=32)),
    ade20k=dict(merging=dict(reduction=43)),
)
optim = dict(
    lr=1e-4,
    metric_lr=1e-3,
    min_lr=1e-6,
    warmup_steps=2500,
    weight_decay=0.05,
    layer_decay=0.75,
    clip_grad=1.0,
)
train = dict(mode="end_to_end", epochs=30, alternate_period=10, eval_every=12_515, save_every=2503)
output = "runs/{{ fileBasenameNoExtension }}"
