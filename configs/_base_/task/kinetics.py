"""Kinetics-400 as VideoMAE fine-tunes on it: clips of 16 frames at a stride of 4, two of a video in a step;
evaluation averages 5 clips of 3 crops.

source     VideoMAE, arXiv 2203.12602, and the defaults of its fine-tuning script: RandAugment m7-n4, erasing,
           mixup and cutmix, smoothed labels
differs    RandAugment changes all frames of a clip by the same draws, as there; its operators are timm's

Make the shards with `dtem shards make video_folders PATH/TO/kinetics400 data/kinetics400`, of videos
that were scaled to a shorter side of 256 or 320 before. 6 videos on each of 64 GPUs are the script's step.
"""

tasks = dict(
    kinetics=dict(
        type="video_classification",
        head=dict(num_classes=400, label_smoothing=0.1),
        data=dict(
            schema="video_classification",
            train="data/kinetics400",
            val="data/kinetics400",
            img_size=224,
            stride=4,
            batch_size=6,
            views=2,
            eval_batch_size=4,
            eval_clips=5,
            eval_crops=3,
            workers=12,
            augment=dict(
                crop_ratio=(3 / 4, 4 / 3),
                rand_augment="rand-m7-n4-mstd0.5-inc1",
                random_erasing=0.25,
                mixup=0.8,
                cutmix=1.0,
                interpolation="bicubic",
                mean=(0.485, 0.456, 0.406),
                std=(0.229, 0.224, 0.225),
            ),
        ),
    )
)
