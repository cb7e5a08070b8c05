"""What a 64x64 scene of digits shows, told in a sentence. Make the shards with `dtem shards make digit_scenes
data/digits`.

The vocabulary is that of the set (`dtem shards words data/digits`). Captions say left and right, so images
are not flipped.

source     none: this project's own
"""

_words = (
    "a an the and , ; : of at on in with to from it is are there its own digit digits handwritten "
    "picture single largest big small "
    "other others nothing else left right top bottom middle above below over under zero one two three "
    "four five six seven eight nine"
).split()
_tokenizer = dict(type="words", words=_words, context_length=36)
tasks = dict(
    digits_captioning=dict(
        type="captioning",
        head=dict(tokenizer=_tokenizer),
        data=dict(
            schema="captioning",
            tokenizer=_tokenizer,
            train="data/digits",
            val="data/digits",
            img_size=64,
            batch_size=64,
            eval_batch_size=250,
            workers=1,
            augment=dict(
                crop_scale=(1.0, 1.0),
                hflip=0.0,
                crop_pct=1.0,
                interpolation="bilinear",
                mean=(0.5, 0.5, 0.5),
                std=(0.25, 0.25, 0.25),
            ),
        ),
    )
)
