"""CIFAR-10 at its own 32x32: shifts and flips instead of crops to a smaller area.

source     none: this project's own
"""

tasks = dict(
    cifar10=dict(
        type="classification",
        head=dict(num_classes=10),
        data=dict(
            schema="classification",
            train="data/cifar10",
            val="data/cifar10",
            img_size=32,
            batch_size=128,
            eval_batch_size=250,
            workers=1,
            augment=dict(
                crop_scale=(1.0, 1.0),
                pad=4,
                crop_pct=1.0,
                interpolation="bilinear",
                mean=(0.491, 0.482, 0.447),
                std=(0.247, 0.243, 0.262),
            ),
        ),
    )
)
