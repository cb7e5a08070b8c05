"""ImageNet-1k with DeiT's augmentation; evaluation resizes to 256 and crops 224.

source     arXiv 2012.12877, table 9, and the code that came with it: timm's pipeline, mixup or cutmix of each
           batch, smoothed labels
differs    no repeated augmentation: data.views=3 with a third of batch_size and of train.epochs is that

Make the shards with `dtem shards make imagefolder PATH/TO/imagenet data/imagenet`. 128 images per GPU on 8
GPUs are the paper's 1024.
"""

tasks = dict(
    imagenet=dict(
        type="classification",
        head=dict(num_classes=1000, label_smoothing=0.1),
        data=dict(
            schema="classification",
            train="data/imagenet",
            val="data/imagenet",
            img_size=224,
            batch_size=128,
            workers=8,
            exif_rotation=False,  # as timm and torchvision read ImageNet
            augment=dict(
                rand_augment="rand-m9-mstd0.5-inc1",
                random_erasing=0.25,
                mixup=0.8,
                cutmix=1.0,
                crop_pct=0.875,
                interpolation="bicubic",
            ),
        ),
    )
)
