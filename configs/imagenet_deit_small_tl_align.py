"""DeiT-Small on ImageNet-1k from chance, with labels of cutmix that follow the tokens (TL-Align).

command    deepspeed --num_gpus 8 launch/train.py --config configs/imagenet_deit_small_tl_align.py
           its control: --cfg-options tasks.imagenet.data.augment.mix_labels=patches
source     TL-Align (Xiao et al., ICCV 2023, arXiv 2210.06455): DeiT's recipe without mixup
differs    as configs/imagenet_deit_small.py does from DeiT's; rectangles are timm's, rounded to whole
           patches, where the authors draw them on the grid
hardware   8 GPUs; memory not measured: on small ones, halve batch_size and double engine.accumulation
expected   80.6 top-1 (TL-Align's README; 79.8 without it); not run here
"""

_base_ = ["imagenet_deit_small.py"]
tasks = dict(imagenet=dict(data=dict(augment=dict(mixup=0.0, mix_labels="tokens"))))
output = "runs/{{ fileBasenameNoExtension }}"
