"""Refusal of a checkpoint that is of another architecture than the backbone."""

import re
from collections.abc import Collection, Mapping

from torch import Tensor

from pipeline.backbone.metric import LEARNED
from pipeline.errors import CheckpointError

BLOCK = re.compile(r"^blocks\.(\d+)\.")
"""Begin of the keys of a block, without our `backbone.`."""
_OF_POLICY = re.compile(rf"^blocks\.\d+\.({'|'.join(LEARNED)})\.")
_OPTIONS = {
    ".ls1.": "init_values=1e-5",
    ".attn.qkv.bias": "qkv_bias=True",
    ".attn.q_bias": "qkv_bias=True",
    ".attn.q_norm.": "qk_norm=True",
    ".attn.norm.": "scale_attn_norm=True",
}
"""Part of a block that timm builds by an option -> the option."""


def another(what: str, given: Mapping[str, Tensor], option: str = "") -> CheckpointError:
    """The error of a checkpoint of another architecture, with what its tensors tell of that.

    given: tensors by timm's keys. option: the one that would build what is lacking.
    """
    facts = ", ".join(f"{name}={value}" for name, value in _facts(given).items())
    model = f"the checkpoint's model{f' ({facts})' if facts else ''}"
    hint = f", here {option}" if option else ""
    return CheckpointError(
        f"{what}: another architecture; give backbone.name and backbone.options of {model}{hint}"
    )


def check_blocks(
    lacking: Collection[str], left: Collection[str], given: Mapping[str, Tensor], depth: int
) -> None:
    """Raises CheckpointError where a tensor of one of the first `depth` blocks has no counterpart, as the
    backbone would then compute something else than the checkpoint's model.

    lacking: keys of the backbone, without metric embeddings, that got nothing. left: keys of the checkpoint
    that filled nothing. given: tensors of the checkpoint.
    """
    for key in left:
        match = BLOCK.match(key)
        if match and int(match[1]) < depth and not _OF_POLICY.match(key):
            option = next((option for part, option in _OPTIONS.items() if part in key), "")
            raise another(f"'{key}' of the checkpoint has no place in the backbone", given, option)
    if missed := next((key for key in lacking if BLOCK.match(key)), None):
        raise another(f"'{missed}' of the backbone is not in the checkpoint", given)


def depth_of(keys: Collection[str]) -> int:
    """Number of blocks that have a tensor among these keys, up to the last one."""
    return max((int(match[1]) + 1 for key in keys if (match := BLOCK.match(key))), default=0)


def _facts(given: Mapping[str, Tensor]) -> dict[str, object]:
    """Options of timm's class that the tensors tell."""
    patches = given.get("patch_embed.proj.weight")
    facts: dict[str, object] = {}
    if patches is not None and patches.ndim in (4, 5):
        sides = tuple(patches.shape[-2:])
        facts = {"embed_dim": len(patches), "patch_size": sides[0] if sides[0] == sides[1] else sides}
    if depth := depth_of(given):
        facts["depth"] = depth
    if "reg_token" in given:
        facts["reg_tokens"] = given["reg_token"].shape[-2]
    return facts
