"""LeMeViT-Small on ImageNet-1k from chance: configs/imagenet_lemevit_tiny.py with the next size.

command    deepspeed --num_gpus 8 launch/train.py --config configs/imagenet_lemevit_small.py
source     LeMeViT (Jiang et al., IJCAI 2024), as there
differs    as that one
hardware   8 GPUs; memory not measured: on small ones, halve batch_size and double engine.accumulation
expected   81.88 top-1 (LeMeViT's README); not run here
"""

_base_ = ["imagenet_lemevit_tiny.py"]
backbone = dict(name="lemevit_small")
output = "runs/{{ fileBasenameNoExtension }}"
