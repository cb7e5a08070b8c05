"""The CIFAR-10 ViT trained by cutmix and TokenMixup, across images and within one.

command    dtem train configs/cifar10_vit_token_mixup.py
           its control: --set tasks.cifar10.head.token_mixup=None, cutmix alone on the same images
source     TokenMixup (Choi, Choi & Kim, NeurIPS 2022, arXiv 2210.07562): tau 0.1, rho 0.003 and lambda 0.001
           of its CIFAR-10 runs
differs    a model of this size; cutmix alone before it, and no mixup; rate and length are ours
hardware   1 CPU core, about ten minutes
expected   to be measured (benchmarks/cifar10_tokenmixup.py)
"""

_base_ = ["cifar10_vit.py"]
tasks = dict(
    cifar10=dict(
        data=dict(augment=dict(cutmix=1.0)),
        head=dict(
            token_mixup=dict(
                horizontal=dict(layer=2, easy=1.0, margin=0.003, weight=0.001),
                vertical=dict(layer=3, keep=3),
            )
        ),
    )
)
train = dict(epochs=4, eval_every=703)
output = "runs/{{ fileBasenameNoExtension }}"
