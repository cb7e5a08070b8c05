"""LeMeViT-Base on ImageNet-1k from chance: 300 epochs by LeMeViT's recipe.

data       dtem shards make imagefolder PATH/TO/imagenet data/imagenet; or timm's WebDataset shards
           (imagenet1k-train-{0000..1023}.tar) as tasks.imagenet.data.train, and the validation ones as .val
command    deepspeed --num_gpus 8 launch/train.py --config configs/imagenet_lemevit_base.py
source     LeMeViT (Jiang et al., IJCAI 2024), lemevit.yaml of its code: _base_/schedule/lemevit.py; images
           as DeiT's (_base_/task/imagenet.py), with repeated augmentation (3); mean and deviation of pixels
           and the crop of evaluation are those that its code takes from timm's ViTs
differs    as _base_/schedule/lemevit.py says; no jitter of colours, which timm leaves out under RandAugment;
           running statistics of norms are those of the last weights, also beside their average; bf16 in
           place of fp16
hardware   8 GPUs; memory not measured: on small ones, halve batch_size and double engine.accumulation
expected   84.35 top-1 (LeMeViT's README); not run here
"""

_base_ = ["_base_/task/imagenet.py", "_base_/schedule/lemevit.py", "_base_/engine/deepspeed.py"]
backbone = dict(name="lemevit_base", drop_path=0.15)
_pixels = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), crop_pct=0.9)
tasks = dict(imagenet=dict(data=dict(batch_size=42, views=3, augment=_pixels)))
output = "runs/{{ fileBasenameNoExtension }}"
