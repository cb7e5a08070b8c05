"""A captioner of 64x64 scenes, unmerged: a small ViT and open_clip's CoCa decoder looking at its tokens
directly.

data       scenes as shards in data/cifar_scenes (`dtem shards make captions TABLE data/cifar_scenes` makes
           such shards of any table)
start      the ViT of cifar10_vit.py; without it: --cfg-options backbone.weights=None
command    dtem train configs/scenes_captioning.py or, on both cores: deepspeed --num_accelerators 2
           launch/train.py --config configs/scenes_captioning.py \
               --cfg-options engine.type=deepspeed tasks.scenes_captioning.data.batch_size=32
source     none: this project's own; CoCa's decoder, arXiv 2205.01917, by open_clip
hardware   2 CPU cores, about 20 minutes
expected   benchmarks/records/scenes_captioning_dtem_vs_tome.json, the unmerged scores
"""

_base_ = ["_base_/backbone/cifar_vit.py", "_base_/task/scenes_captioning.py", "_base_/engine/local_cpu.py"]
backbone = dict(img_size=64, weights="runs/cifar10_vit")
engine = dict(precision="bf16", zero_stage=0)
tasks = dict(
    scenes_captioning=dict(
        head=dict(
            route="direct",
            contrastive_weight=0.0,
            caption_weight=1.0,
            model=dict(
                embed_dim=128,
                text_cfg=dict(width=128, heads=4, layers=1, embed_cls=True, output_tokens=True),
                multimodal_cfg=dict(width=128, heads=4, layers=2, attn_pooler_heads=4),
            ),
            generation=dict(strategy="greedy", max_length=24),
        )
    )
)
optim = dict(lr=1e-3, min_lr=1e-5, warmup_steps=100, weight_decay=0.05, betas=(0.9, 0.99), clip_grad=1.0)
train = dict(mode="backbone", epochs=8, eval_every=750, save_every=250)
output = "runs/{{ fileBasenameNoExtension }}"
