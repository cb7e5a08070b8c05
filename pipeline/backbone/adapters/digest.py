"""The digest of a base model, by which an adapter knows the model that it was taught on.

It is the SHA-256 over the tensors of the blocks without the metric embeddings, by the names that timm's Block
has (`blocks.N.*`, see `as_in_timm`), in their sorted order. Of each tensor it takes the line `KEY SHAPE` and
the bytes of its values: floats rounded to bfloat16, others as they are. So the library that the model is of,
the head, the image size and the positions may be others, and a model in float32 has the digest of its copy in
bfloat16. A copy in float16 was rounded otherwise, and has another one.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.backbone.metric import is_embedding
from pipeline.backbone.weights.block_names import as_in_timm
from pipeline.errors import CheckpointError


def base_digest(blocks: Sequence[nn.Module]) -> str:
    """64 hex digits that name the weights of the blocks. A ViT-L takes about a second, and the memory of one
    block. Raises CheckpointError for a model without memory (meta device), and for a quantised one."""
    found = hashlib.sha256()
    for place, block in sorted((f"blocks.{number}.", block) for number, block in enumerate(blocks)):
        own = {
            key.removeprefix(place): _rounded(key, tensor)
            for key, tensor in block.state_dict(prefix=place).items()
            if not is_embedding(key)
        }
        for name, tensor in sorted(as_in_timm(own).items()):
            found.update(f"{place}{name} {list(tensor.shape)}\n".encode())
            found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _rounded(key: str, tensor: Tensor) -> Tensor:
    """The tensor on the CPU; floats as bfloat16."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.is_quantized:
        raise CheckpointError(
            f"{key} is quantised or sharded; save or load the adapter before that is done to the model"
        )
    if tensor.is_meta:
        raise CheckpointError(f"{key} has no values (meta device); load the model's weights first")
    return (tensor.detach().to(torch.bfloat16) if tensor.is_floating_point() else tensor.detach()).cpu()
