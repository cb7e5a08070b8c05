"""UPerNet on four taps of a ViT-Base, trained on ADE20K while its tokens merge: backbone, heads and
embeddings learn together.

data       dtem shards make ade20k PATH/TO/ADEChallengeData2016 data/ade20k
command    deepspeed --num_gpus 8 launch/train.py --config configs/ade20k_upernet_vit_base_dtem.py
then       dtem sweep runs/ade20k_upernet_vit_base_dtem
source     MMSegmentation's vit_vit-b16-ln_mln_upernet_8xb2-160k_ade20k-512x512: heads, AdamW's rates,
           warm-up, steps, batch
differs    weights of 384 pixels, and pixels as these weights want them, where it has ImageNet's mean and std
           for all; clipped gradients; merging, with the embeddings trained in turn
hardware   8 GPUs for the usual batch of 16; memory not measured
expected   to be measured; unmerged: 47.7 mIoU (MMSegmentation, ViT-B + LN + MLN, 160k steps)

Neck and heads are MMSegmentation's own dicts. Every tap is unmerged by its own source map; only the last one
is normed.
"""

_base_ = ["_base_/merging/dtem.py", "_base_/task/ade20k.py", "_base_/engine/deepspeed.py"]
backbone = dict(
    name="vit_base_patch16_384.augreg_in21k_ft_in1k", pretrained=True, img_size=512, drop_path=0.1
)
merging = dict(reduction=43)
tasks = dict(
    ade20k=dict(
        head=dict(
            out_indices=[2, 5, 8, 11],
            neck=dict(type="MultiLevelNeck", out_channels=768, scales=[4, 2, 1, 0.5]),
            decode_head=dict(
                type="UPerHead",
                in_index=[0, 1, 2, 3],
                pool_scales=[1, 2, 3, 6],
                channels=512,
                dropout_ratio=0.1,
                norm_cfg=dict(type="SyncBN", requires_grad=True),
            ),
            auxiliary_head=dict(
                type="FCNHead",
                in_index=3,
                channels=256,
                num_convs=1,
                concat_input=False,
                dropout_ratio=0.1,
                norm_cfg=dict(type="SyncBN", requires_grad=True),
                loss_decode=dict(type="CrossEntropyLoss", loss_weight=0.4),
            ),
        ),
        data=dict(batch_size=2),
    )
)
optim = dict(
    lr=6e-5,
    metric_lr=1e-4,
    min_lr=0.0,
    schedule="linear",
    warmup_steps=1500,
    weight_decay=0.01,
    clip_grad=5.0,
)
train = dict(mode="end_to_end", steps=160_000, alternate_period=10, eval_every=16_000, save_every=4_000)
output = "runs/{{ fileBasenameNoExtension }}"
