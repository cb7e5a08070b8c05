"""DTEM on a frozen Seg-S-Mask/16, the paper's setting for segmentation, by this project's own recipe: prices
of merges.

data       the run of configs/ade20k_segmenter_vit_small.py
command    deepspeed --num_gpus 8 launch/train.py --config configs/ade20k_segmenter_vit_small_dtem.py
then       dtem sweep runs/ade20k_segmenter_vit_small_dtem
source     docs/merge_cost.md, on the model of ade20k_segmenter_vit_small.py
differs    the embeddings alone are trained, by this project's own recipe
hardware   8 GPUs for a batch of 8
expected   to be measured; the unmerged model's mIoU, which merging approaches from below
           43 tokens per block merge half of a window's 1024 patches, at 72 % of the encoder's MACs

For the paper's recipe, replace _base_/merging/dtem.py by dtem_paper.py.
`tasks.ade20k.head.merged_decoder=true` lets the decoder read the merged tokens as well.
"""

_base_ = ["ade20k_segmenter_vit_small.py", "_base_/merging/dtem.py"]
backbone = dict(pretrained=False, weights="runs/ade20k_segmenter_vit_small")
merging = dict(reduction=43)
optim = dict(_delete_=True, lr=2e-3, min_lr=1e-5, warmup_steps=100, weight_decay=1e-4, clip_grad=5.0)
train = dict(_delete_=True, mode="modular", epochs=3, reduction_range=(16, 64), save_every=2_500)
output = "runs/{{ fileBasenameNoExtension }}"
