"""DeiT-Small fine-tuned to prune by AS-ViT: thresholds learn which patches pay, within a budget.

command    deepspeed --num_gpus 4 launch/train.py --config configs/imagenet_deit_small_as_vit.py
then       dtem evaluate runs/imagenet_deit_small_as_vit --reduction kept
source     AS-ViT (Liu et al., IJCAI 2023), its code: 65 % of the MACs, thresholds behind blocks 4, 7 and 10,
           30 epochs from DeiT's weights at 2e-5 for 512 images, cosine to 2e-6, weight decay 1e-6, no
           warm-up, distillation by 0.5
differs    the teacher is the model itself without masks; the budget is one over all ranks, of the blocks'
           MACs; thresholds are in parts of 1 / 196, and so is their rate, 196 times the backbone's;
           evaluation while it trains removes 30 % in each of these blocks, which is about the budget
hardware   4 GPUs; a step takes two passes, with attention as matrices; memory not measured: on small ones,
           halve batch_size and double engine.accumulation
expected   0.2 % below the unmerged at 50 % more images/s (abstract); not run here
           unmerged: 79.8 top-1 (DeiT, arXiv 2012.12877)
"""

_base_ = ["_base_/task/imagenet.py", "_base_/engine/deepspeed.py"]
backbone = dict(name="deit_small_patch16_224.fb_in1k", pretrained=True)
merging = dict(policy="as_vit", reduction=[0, 0, 0, 59, 0, 0, 41, 0, 0, 29])
objective = dict(type="budget", options=dict(ratio=0.65))
tasks = dict(imagenet=dict(data=dict(batch_size=128)))
optim = dict(lr=2e-5, metric_lr=4e-3, min_lr=2e-6, warmup_steps=0, weight_decay=1e-6, clip_grad=None)
train = dict(mode="joint", epochs=30, eval_every=2503, save_every=2503)
output = "runs/{{ fileBasenameNoExtension }}"
