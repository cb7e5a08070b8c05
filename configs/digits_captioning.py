"""Sentences about digit scenes: a small ViT, a small decoder that looks at its merged tokens, and DTEM learn
together, in one command.

data       dtem shards make digit_scenes data/digits --train 12000
command    dtem train configs/digits_captioning.py
then       dtem sweep runs/digits_captioning; dtem visualise runs/digits_captioning
source     none: this project's own; the embeddings learn by docs/merge_cost.md
hardware   1 CPU core, about 6 minutes
expected   CIDEr 1.34 and BLEU-4 47 % on the 500 validation scenes after 4000 steps (one run)
"""

_base_ = [
    "_base_/backbone/digits_vit.py",
    "_base_/merging/dtem.py",
    "_base_/task/digits_captioning.py",
    "_base_/schedule/digits.py",
    "_base_/engine/local_cpu.py",
]
merging = dict(reduction=10)
tasks = dict(
    digits_captioning=dict(
        head=dict(
            route="direct",
            contrastive_weight=0.0,
            caption_weight=1.0,
            model=dict(
                embed_dim=64,
                text_cfg=dict(width=64, heads=2, layers=1),
                multimodal_cfg=dict(width=64, heads=2, layers=2),
            ),
            generation=dict(max_length=35),
        ),
        data=dict(batch_size=32),
    )
)
train = dict(mode="end_to_end", steps=4000, alternate_period=5, log_every=200, eval_every=1000)
output = "runs/{{ fileBasenameNoExtension }}"
