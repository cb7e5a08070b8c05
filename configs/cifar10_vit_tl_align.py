"""The CIFAR-10 ViT trained by cutmix, with labels that follow the tokens (TL-Align).

command    dtem train configs/cifar10_vit_tl_align.py
           its control: --set tasks.cifar10.data.augment.mix_labels=patches, the same images, labels by area
source     TL-Align (Xiao et al., ICCV 2023, arXiv 2210.06455)
differs    a model of this size; rate and length are ours
hardware   1 CPU core, about ten minutes
expected   to be measured (benchmarks/cifar10_tl_align.py)
"""

_base_ = ["cifar10_vit.py"]
tasks = dict(cifar10=dict(data=dict(augment=dict(cutmix=1.0, mix_labels="tokens"))))
train = dict(epochs=4, eval_every=703)
output = "runs/{{ fileBasenameNoExtension }}"
