"""Captions of 64x64 scenes, two or three CIFAR-10 photographs each: shards whose samples have a jpg and a
json with captions.

The vocabulary is that of the set (`dtem shards words data/cifar_scenes`).

source     none: this project's own
"""

_words = (
    "the a at left top bottom right and in corner on , an horse dog ship frog bird deer airplane "
    "automobile cat truck there is picture of"
).split()
tokenizer = dict(type="words", words=_words, context_length=25)
tasks = dict(
    scenes_captioning=dict(
        type="captioning",
        head=dict(tokenizer=tokenizer),
        data=dict(
            schema="captioning",
            tokenizer=tokenizer,
            train="data/cifar_scenes",
            val="data/cifar_scenes",
            img_size=64,
            batch_size=64,
            eval_batch_size=100,
            workers=1,
            augment=dict(
                crop_scale=(1.0, 1.0),
                hflip=0.0,
                crop_pct=1.0,
                interpolation="bilinear",
                mean=(0.491, 0.482, 0.447),
                std=(0.247, 0.243, 0.262),
            ),
        ),
    )
)
del tokenizer
