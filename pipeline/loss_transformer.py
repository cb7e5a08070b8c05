"""The loss transformer (MELTR, Ko et al., CVPR 2023): a small network that reads the losses of a step, each
as a token, and makes one number of them. T losses, D width."""

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


class LossTransformer(nn.Module):
    """Lifts each loss to D numbers by two layers, adds what is learned of each loss by itself, lets them
    attend to one another in one layer (post-norm, without dropout), and reads their mean by a linear layer
    without bias. That layer starts at zero, and with it the number.

    Losses may differ by orders of magnitude, so their inverse hyperbolic sines are read, which are logarithms
    of large ones, of either sign.
    """

    def __init__(self, num_losses: int, *, width: int, heads: int):
        super().__init__()
        self.lift = nn.Sequential(nn.Linear(1, width // 2), nn.ReLU(), nn.Linear(width // 2, width))
        self.which = nn.Parameter(0.02 * torch.randn(num_losses, width))
        self.layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.0, batch_first=True)
        self.read = nn.Linear(width, 1, bias=False)
        nn.init.zeros_(self.read.weight)

    def forward(self, losses: Tensor, given: Tensor) -> Tensor:
        """A scalar of losses [T] float32, differentiable twice. given [T] bool: the losses that are there; no
        other one is attended to, or in the mean."""
        tokens = self.lift(losses.asinh()[:, None]) + self.which
        hidden = ~given & given.any()  # where none is given there has to be something to attend to
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels are differentiable once
            seen = self.layer(tokens[None], src_key_padding_mask=hidden[None])[0]
        mean = (seen * given[:, None]).sum(dim=0) / given.sum().clamp(min=1)
        return self.read(mean).squeeze()


def outer_loss(weights: Tensor, products: Tensor) -> Tensor:
    """What the network minimises: minus the sum of weights [T] times products [T], a scalar.

    products: of each loss, the product of its gradient in the model's parameters with that of the validation
    loss. A step of the model against the sum of weights times gradients changes the validation loss by minus
    the rate times this sum, so the gradient of this number in what the weights depend on is the hypergradient
    by implicit differentiation with the identity for the inverse Hessian: -d<dL_train/dw, dL_val/dw>.
    """
    return -(weights * products).sum()
