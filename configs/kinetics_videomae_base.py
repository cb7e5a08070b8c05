"""VideoMAE's ViT-Base fine-tuned on Kinetics-400, unmerged: the model that a policy then merges.

data       dtem shards make video_folders PATH/TO/kinetics400 data/kinetics400
weights    videomae_base_k400_pretrain.pth, ViT-B after 1600 epochs, from the table of models of
           github.com/MCG-NJU/VideoMAE, into weights/
command    deepspeed --num_gpus 8 launch/train.py --config configs/kinetics_videomae_base.py
then       dtem sweep runs/kinetics_videomae_base --policy tome,vid_tldr,rlt
source     VideoMAE, arXiv 2203.12602, and its script for ViT-B: 384 videos a step, two clips of each; AdamW,
           5e-4 for 256 of them, cosine to 1e-6, 5 epochs of warm-up, 75 in all; weight decay 0.05, rates that
           fall by 0.75 from block to block, stochastic depth 0.1
differs    8 GPUs and 8 micro-batches in place of 64 GPUs; the loss of mixed clips as in
           _base_/task/imagenet.py; the rate moves in each step, and its warm-up starts at lr / steps; bf16 in
           place of fp16
hardware   8 GPUs; memory not measured: on small ones, halve batch_size and double engine.accumulation
expected   81.5 top-1 with 5 clips of 3 crops (VideoMAE's table); not run here
"""

_base_ = ["_base_/task/kinetics.py", "_base_/engine/deepspeed.py"]
backbone = dict(
    name="vit_base_patch16_224.mae",
    weights="weights/videomae_base_k400_pretrain.pth",
    frames=16,
    tubelet=2,
    drop_path=0.1,
)
optim = dict(lr=7.5e-4, min_lr=1e-6, warmup_epochs=5, weight_decay=0.05, layer_decay=0.75, clip_grad=None)
engine = dict(accumulation=8)
train = dict(mode="backbone", epochs=75, eval_every=6270, save_every=627)
output = "runs/{{ fileBasenameNoExtension }}"
