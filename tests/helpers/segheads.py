"""Small versions of mmseg's decode heads as its own configs write them: SyncBN, losses, indices and all."""

from typing import Any

CLASSES = 5
NORM = {"type": "SyncBN", "requires_grad": True}
AUXILIARY = {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 0.4}


def segmenter(**options: Any) -> dict[str, Any]:
    head = {
        "type": "SegmenterMaskTransformerHead",
        "channels": 48,
        "num_layers": 2,
        "num_heads": 3,
        "embed_dims": 48,
        "dropout_ratio": 0.0,
    }
    return {"decode_head": head | options}


def fcn(**options: Any) -> dict[str, Any]:
    return {
        "type": "FCNHead",
        "channels": 16,
        "num_convs": 1,
        "dropout_ratio": 0.0,
        "norm_cfg": NORM,
    } | options


UPER = {
    "type": "UPerHead",
    "in_index": [0, 1, 2, 3],
    "channels": 16,
    "pool_scales": (1, 2),
    "dropout_ratio": 0.0,
    "norm_cfg": NORM,
}
LINEAR = fcn(channels=48, num_convs=0, concat_input=False)
SETR_PUP = {
    "type": "SETRUPHead",
    "channels": 16,
    "num_convs": 2,
    "up_scale": 2,
    "dropout_ratio": 0.0,
    "norm_cfg": NORM,
}

HEADS: dict[str, dict[str, Any]] = {
    "segmenter": segmenter(),
    "linear with auxiliary heads": {
        "out_indices": [0, 3],
        "decode_head": LINEAR,
        "auxiliary_head": [fcn(in_index=0, loss_decode=AUXILIARY), fcn(in_index=1, loss_decode=AUXILIARY)],
    },
    "upernet": {
        "out_indices": [0, 1, 2, 3],
        "neck": {"type": "MultiLevelNeck", "out_channels": 16, "scales": [4, 2, 1, 0.5]},
        "decode_head": UPER,
        "auxiliary_head": fcn(in_index=1, loss_decode=AUXILIARY),
    },
    "upernet on a pyramid": {
        "out_indices": [0, 1, 2, 3],
        "neck": {"type": "Feature2Pyramid", "rescales": [4, 2, 1, 0.5]},
        "decode_head": UPER,
    },
    "setr-pup": {"decode_head": SETR_PUP},
}
