"""The digest of a base model, by which an adapter knows the model that it was taught on.

It is the SHA-256 over the tensors of the blocks (`blocks.N.*`) without the metric embeddings, in the order of
their sorted keys. Of each tensor it takes the line `KEY SHAPE` and the bytes of its values: floats rounded to
bfloat16, others as they are. So the head, the image size and the positions may be others, and a model in
float32 has the digest of its copy in bfloat16. A copy in float16 was rounded otherwise, and has another one.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.backbone.metric import is_embedding
from pipeline.errors import CheckpointError


def base_digest(blocks: Sequence[nn.Module]) -> str:
    """64 hex digits that name the weights of the blocks. A ViT-L takes about a second, and the memory of one
    tensor. Raises CheckpointError for a model without memory (meta device)."""
    tensors = {
        key: tensor
        for number, block in enumerate(blocks)
        for key, tensor in block.state_dict(prefix=f"blocks.{number}.").items()
        if not is_embedding(key)
    }
    found = hashlib.sha256()
    for key in sorted(tensors):
        found.update(f"{key} {list(tensors[key].shape)}\n".encode())
        found.update(_bytes_of(key, tensors[key]).numpy().data)
    return found.hexdigest()


def _bytes_of(key: str, tensor: Tensor) -> Tensor:
    """The values as bytes [n] on the CPU."""
    if tensor.is_meta:
        raise CheckpointError(f"{key} has no values (meta device); load the model's weights first")
    values = tensor.detach().to(torch.bfloat16) if tensor.is_floating_point() else tensor.detach()
    return values.cpu().contiguous().reshape(-1).view(torch.uint8)
