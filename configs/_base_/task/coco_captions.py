"""COCO's captions on Karpathy's split, five of an image, read by CLIP's tokenizer; images keep their sides,
which captions tell apart.

source     Karpathy's split; evaluation sees the whole short side, as open_clip's
differs    crops from half of the area on, where open_clip's keep nine tenths: a short training from chance
           sees more

Make the shards with `dtem shards make coco_captions FOLDER data/coco_captions`; FOLDER has dataset_coco.json,
train2014/ and val2014/.
"""

_tokenizer = dict(type="clip", context_length=76)
tasks = dict(
    coco_captions=dict(
        type="captioning",
        head=dict(
            tokenizer=_tokenizer, generation=dict(strategy="beam", num_beams=4, max_length=30, min_length=5)
        ),
        data=dict(
            schema="captioning",
            tokenizer=_tokenizer,
            train="data/coco_captions",
            val="data/coco_captions",
            img_size=224,
            batch_size=64,
            eval_batch_size=64,
            workers=8,
            augment=dict(crop_scale=(0.5, 1.0), hflip=0.0, crop_pct=1.0),
        ),
    )
)
