"""The CIFAR-10 ViT fine-tuned to merge by MCTF at half of its MACs, with consistency of two reductions.

command    dtem train configs/cifar10_vit_mctf.py      (after configs/cifar10_vit.py)
           its control: --cfg-options merging.policy=tome objective.type=supervised
then       dtem evaluate runs/cifar10_vit_mctf
source     MCTF (Lee, Choi & Kim, CVPR 2024): objective and policy
differs    a model of this size; rate and length are ours
hardware   1 CPU core, about ten minutes
expected   to be measured
"""

_base_ = ["cifar10_vit.py"]
backbone = dict(weights="runs/cifar10_vit")
merging = dict(policy="mctf", target_macs=0.5)
objective = dict(type="consistency")
optim = dict(lr=1e-4, min_lr=1e-6, warmup_steps=100)
train = dict(epochs=2, eval_every=703)
output = "runs/{{ fileBasenameNoExtension }}"
