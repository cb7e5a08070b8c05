"""Where a head reads the prefix alone, the last block computes what the prefix reads of the patches."""

import pytest
import torch
from tiny import RELAXED, VARIANTS, images, tiny_vit

from pipeline import build_backbone
from pipeline.data.targets import ClassificationTargets
from pipeline.interfaces import Batch
from pipeline.model import TASKS, MultiTaskModel
from pipeline.objectives import OBJECTIVES
from pipeline.token_state import Carried
from tasks.classification import ClassificationTask

READ_BY_TOKEN = ["class token", "distilled", "query and key norm"]


def classifier(variant, prefix="class token", dtype=torch.float64, **head):
    backbone = tiny_vit(variant, prefix=prefix)
    task = TASKS.build("classification", backbone, num_classes=10, **head)
    model = MultiTaskModel(backbone, {"animals": task}, OBJECTIVES.build("supervised")).to(dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def batch(dtype=torch.float64):
    return Batch("animals", images(3).to(dtype), ClassificationTargets(torch.arange(3)))


@pytest.mark.parametrize("relaxed", [False, True])
@pytest.mark.parametrize("prefix", READ_BY_TOKEN)
@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_gradients_are_those_of_all_tokens(variant, prefix, relaxed):
    """Also which parameters have a gradient, be it zero: an optimizer decays them."""
    model, losses, gradients = classifier(variant, prefix), [], []
    head = model.tasks["animals"]
    assert head.reads_prefix_alone
    for alone in (False, True):
        head.reads_prefix_alone = alone
        losses.append(model.predict(batch(), relaxed=relaxed).loss)
        gradients.append(torch.autograd.grad(losses[-1], list(model.parameters()), allow_unused=True))
    torch.testing.assert_close(*losses)
    for name, of_all, own in zip(dict(model.named_parameters()), *gradients, strict=True):
        assert (of_all is None) == (own is None), name
        if own is not None and of_all is not None:
            torch.testing.assert_close(
                own, of_all, atol=1e-10, rtol=1e-7, msg=lambda text, name=name: name + text
            )


def test_the_patches_are_left_out_where_they_are_not_read_and_only_there():
    backbone, x = tiny_vit("dtem").train(), images()
    assert backbone(x, prefix_alone=True).final.tokens.shape[1] == 1
    full = 65
    for options in ({"taps": (-1,)}, {"merge_points_from": 0}, {"unmerge": "residual"}):
        assert backbone(x, prefix_alone=True, **options).final.tokens.shape[1] == full
    carried = {"mark": Carried(torch.zeros(2, full), "sum")}
    assert backbone(x, prefix_alone=True, carried=carried).final.carried["mark"].values.shape[1] == full
    backbone.blocks[2].attn.proj_drop.p = 0.1  # which numbers it draws depends on how many there are
    assert backbone(x, prefix_alone=True).final.tokens.shape[1] == full
    assert backbone.eval()(x, prefix_alone=True).final.tokens.shape[1] == 1
    assert not classifier("dtem", pool="avg").tasks["animals"].reads_prefix_alone


class WithPatches(ClassificationTask):
    """A head of a user."""

    def _pooled(self, state):
        return state.tokens[:, 0] + state.patch_tokens.mean(1)


def test_a_subclass_may_read_patches_too():
    backbone = tiny_vit("dtem")
    task = WithPatches(backbone, num_classes=10)
    model = MultiTaskModel(backbone, {"animals": task}, OBJECTIVES.build("supervised"))
    assert model.train()(batch(torch.float32)).loss.isfinite()
    assert TASKS.build("multi_label", backbone, num_classes=10).reads_prefix_alone


@pytest.mark.parametrize("variant", RELAXED)
def test_what_a_modular_step_keeps(variant):
    """In rows of tokens: of each block its input, the attention's output, the merged tokens and the input of
    the GELU, four times as wide; and q, k and v. The first block keeps no q, k and v, as nothing before its
    embedding learns; the last one those and its input alone. The rest is small: similarities, embeddings. A
    fused kernel keeps its output too."""
    policy, options = VARIANTS[variant]
    sizes = {"depth": 3, "embed_dim": 192, "num_heads": 3, "patch_size": 8}
    backbone = build_backbone(
        "deit_tiny_patch16_224",
        policy=policy,
        reduction=8,
        img_size=64,
        timm_options=sizes,
        embed_dim=8,
        **options,
    )
    backbone.eval().requires_grad_(False)
    for block in backbone.blocks:
        block.metric.requires_grad_()
    own, kept = {parameter.untyped_storage().data_ptr() for parameter in backbone.parameters()}, {}

    def keep(x):
        storage = x.untyped_storage()
        kept[storage.data_ptr()] = x, storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        output = backbone(images(2), training=True, prefix_alone=True)
    assert output.final.tokens.requires_grad
    rows = sum(nbytes for place, (_, nbytes) in kept.items() if place not in own) / (4 * 2 * 65 * 192)
    fused = variant != "dtem_reference"
    assert 7 + 10 + 4 <= rows <= 7 + 10 + 4 + 2 + 2 * fused
