"""ViTs of torchvision in a merging backbone: every tensor finds its place, and the logits are theirs."""

import pytest
import torch
from tiny import IMG, SIZES, images
from torchvision.models import VisionTransformer

from pipeline.backbone.build import create_vit
from pipeline.backbone.weights.files import Weights
from pipeline.backbone.weights.plain_models import fill_model

NAME = "deit_tiny_patch16_224"
OLD = {"mlp.0.": "mlp.linear_1.", "mlp.3.": "mlp.linear_2."}


def theirs():
    torch.manual_seed(0)
    model = VisionTransformer(IMG, 8, num_layers=3, num_heads=3, hidden_dim=48, mlp_dim=192, num_classes=7)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def renamed(state, names):
    for one, other in names.items():
        state = {key.replace(one, other): value for key, value in state.items()}
    return state


@torch.no_grad()
@pytest.mark.parametrize("names", [{}, OLD], ids=["today's", "of before 0.12"])
def test_logits_are_those_of_torchvision(names):
    model, ours = theirs(), create_vit(NAME, num_classes=3, img_size=IMG, timm_options=SIZES)
    report = fill_model(ours, Weights(renamed(model.state_dict(), names)))
    assert set(report.left) == {"head.weight", "head.bias"}, "the head is the model's, not the backbone's"
    torch.testing.assert_close(ours.eval()(images()), model(images()), atol=1e-4, rtol=1e-4)
