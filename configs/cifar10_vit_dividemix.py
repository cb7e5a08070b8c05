"""The CIFAR-10 ViT trained by DivideMix on labels some of which are wrong.

command    dtem shards corrupt-labels data/cifar10 data/cifar10_noisy --noise symmetric --rate 0.4
           dtem train configs/cifar10_vit_dividemix.py --set tasks.cifar10.data.train=data/cifar10_noisy
           its control: cross-entropy, by --set backbone.peers=1 step.type=plain
           "step.options={'_delete_': True}" tasks.cifar10.data.views=1
source     DivideMix (Li, Socher & Hoi, ICLR 2020, arXiv 2002.07394): its weights; the 25 of unlabelled
           samples is that for 50 % symmetric noise
differs    a ViT of this size and AdamW; both networks see the same batches; length and rate are ours, and
           the first epochs are fewer
hardware   1 CPU core, about two hours
expected   to be measured (benchmarks/cifar10_noisy_labels.py)
"""

_base_ = ["cifar10_vit.py"]
backbone = dict(peers=2)
tasks = dict(cifar10=dict(data=dict(views=2)))
step = dict(type="dividemix", options=dict(warmup_epochs=2, ramp_epochs=4.0))
train = dict(epochs=8, eval_every=703)
output = "runs/{{ fileBasenameNoExtension }}"
