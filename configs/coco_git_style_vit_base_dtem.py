"""GIT's plan on COCO: a decoder of six layers looks at the merged tokens of CLIP's ViT-B/16 themselves, so it
costs less as they get fewer.

data       dtem shards make coco_captions PATH/TO/coco data/coco_captions
command    deepspeed --num_gpus 8 launch/train.py --config configs/coco_git_style_vit_base_dtem.py
then       dtem sweep runs/coco_git_style_vit_base_dtem; dtem visualise runs/coco_git_style_vit_base_dtem
source     GIT, arXiv 2205.14100: CLIP's ViT-B/16, six layers of 768 channels, smoothed labels
differs    the words look at the image in layers of their own, as in CoCa, where GIT has words and image in
           one sequence; nothing but COCO is seen, where GIT has millions of pairs before; rates, epochs and
           crops ours
hardware   8 GPUs for a batch of 512; memory not measured: on small ones, halve batch_size and double
           accumulation
expected   to be measured
"""

_base_ = ["_base_/merging/dtem.py", "_base_/task/coco_captions.py", "_base_/engine/deepspeed.py"]
backbone = dict(name="vit_base_patch16_clip_224.openai", pretrained=True, drop_path=0.1)
merging = dict(reduction=8)
tasks = dict(
    coco_captions=dict(
        head=dict(
            route="direct",
            contrastive_weight=0.0,
            caption_weight=1.0,
            label_smoothing=0.1,
            model=dict(
                embed_dim=512,
                text_cfg=dict(width=768, heads=12, layers=1),
                multimodal_cfg=dict(width=768, heads=12, layers=6),
            ),
        )
    )
)
optim = dict(
    lr=2e-4,
    metric_lr=1e-3,
    min_lr=1e-6,
    warmup_steps=500,
    weight_decay=0.1,
    betas=(0.9, 0.98),
    layer_decay=0.75,
    clip_grad=1.0,
)
train = dict(mode="end_to_end", epochs=20, alternate_period=10, eval_every=1000, save_every=500)
output = "runs/{{ fileBasenameNoExtension }}"
