"""The CIFAR-10 ViT trained without labels: i-Mix over two views of each image.

command    dtem train configs/cifar10_vit_imix.py
           then a linear probe, which reads labels and leaves the backbone as it is:
           dtem train configs/cifar10_vit.py --set train.mode=heads \
               --set backbone.weights=runs/cifar10_vit_imix
           its control: --set objective.options.alpha=0, plain contrast of the same views
source     i-Mix (Lee et al., ICLR 2021, arXiv 2010.08887), over the N-pair loss: alpha 1, temperature 0.2
differs    a model of this size; rate, length and colours are ours
hardware   1 CPU core, about twenty minutes
expected   to be measured (benchmarks/cifar10_imix.py)
"""

_base_ = ["cifar10_vit.py"]
objective = dict(type="i_mix")
tasks = dict(
    cifar10=dict(
        data=dict(
            batch_size=64,
            views=2,
            augment=dict(pad=0, crop_scale=(0.3, 1.0), color_jitter=0.4, grayscale=0.2),
        )
    )
)
train = dict(epochs=4, eval_every=None)
output = "runs/{{ fileBasenameNoExtension }}"
