"""What somebody changed in a model before it is patched stays in force, or the model is refused, and as it
was."""

import copy
import pickle
from types import MethodType

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from tiny import IMG, SIZES, images
from tiny_hugging_face import inputs, library_model
from torch import nn
from transformers import Dinov2Model

import dtem
from pipeline.errors import ConfigError


def drawn(name="deit_tiny_patch16_224", **options):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=7, img_size=IMG, **SIZES | options).eval()


def doubled(*arguments):
    """A hook that doubles what it sees: the output of a forward hook, else the input."""
    value = arguments[-1]
    return 2 * value if isinstance(value, torch.Tensor) else (2 * value[0], *value[1:])


class Doubled(VisionTransformer):
    def forward_features(self, x, attn_mask=None, is_causal=False):
        return 2 * super().forward_features(x)


class DoubledDinov2(Dinov2Model):
    def forward(self, pixel_values, **options):
        found = super().forward(pixel_values, **options)
        found.last_hidden_state = 2 * found.last_hidden_state
        return found


def as_class(model, kind):
    model.__class__ = kind


def own_forward(part):
    library = part.forward
    part.forward = MethodType(lambda _, *args, **options: 2 * library(*args, **options), part)


def thrice(model):
    model.blocks = nn.Sequential(*[model.blocks[0]] * 3)


CHANGES = {
    "a method of a subclass": (lambda m: as_class(m, Doubled), "forward_features of its own"),
    "a method of the object": (
        lambda m: setattr(m, "forward_features", lambda x, **_: m.norm(m._pos_embed(m.patch_embed(x)))),
        "forward_features of its own",
    ),
    "a forward of an attention": (lambda m: own_forward(m.blocks[1].attn), r"blocks.1.attn has"),
    "a hook of an attention": (
        lambda m: m.blocks[1].attn.register_forward_hook(doubled),
        r"blocks.1.attn has",
    ),
    "a hook before an attention": (
        lambda m: m.blocks[0].attn.register_forward_pre_hook(doubled),
        r"blocks.0.attn has",
    ),
    "a hook of the attention's weights": (
        lambda m: m.blocks[0].attn.attn_drop.register_forward_hook(doubled),
        r"attn_drop has",
    ),
    "a forward of a block": (lambda m: own_forward(m.blocks[2]), r"blocks.2 has"),
    "a hook of a block": (lambda m: m.blocks[2].register_forward_hook(doubled), r"blocks.2 has"),
    "a hook of all blocks": (lambda m: m.blocks.register_forward_hook(doubled), r"blocks has"),
    "a block at several depths": (thrice, "several depths"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_merging_would_pass_by_is_refused(change):
    apply, said = CHANGES[change]
    model = drawn()
    apply(model)
    before = model(images())
    with pytest.raises(ConfigError, match=said):
        dtem.patch(model, "tome", reduction=0)
    assert torch.equal(model(images()), before)


@pytest.mark.parametrize(
    ("apply", "said"),
    [
        (lambda m: as_class(m, DoubledDinov2), "forward of its own"),
        (lambda m: m.encoder.register_forward_hook(lambda *_: None), "encoder has"),
        (lambda m: m.encoder.layer[1].attention.register_forward_hook(doubled), "attention has"),
    ],
)
def test_a_change_of_a_model_of_transformers_is_refused(apply, said):
    model, batch = library_model("Dinov2Model"), inputs("Dinov2Model")
    apply(model)
    before = model(**batch)[0]
    with pytest.raises(ConfigError, match=said):
        dtem.patch(model, "tome", reduction=0)
    assert torch.equal(model(**batch)[0], before)


def test_a_change_around_stays_in_force():
    """Hooks of parts that are called, a forward of the model's own, and classes around an image tower."""

    class Own(VisionTransformer):
        def forward(self, x):
            return 2 * super().forward(x)

    model = drawn()
    as_class(model, Own)
    for part in (model, model.blocks[1].mlp, model.blocks[0].attn.qkv, model.blocks[0].norm1):
        part.register_forward_hook(doubled)
    before = model(images())
    dtem.patch(model, "tome", reduction=0)
    torch.testing.assert_close(model(images()), before, atol=1e-5, rtol=1e-5)
    assert type(dtem.unpatch(model)) is Own and torch.equal(model(images()), before)


def test_a_patch_that_fails_on_its_way_leaves_the_model_as_it_was():
    model = drawn()
    before, kinds = model(images()), [type(part) for part in model.modules()]
    with pytest.raises((RuntimeError, MemoryError)):
        dtem.patch(model, "dtem", embed_dim=10**13)
    assert [type(part) for part in model.modules()] == kinds and torch.equal(model(images()), before)


def test_what_became_another_class_is_not_unpatched():
    """As FSDP2 does with a module that it shards."""
    model = dtem.patch(drawn(), "tome", reduction=4)
    library = type(model.blocks[1])
    model.blocks[1].__class__ = type("FSDPBlock", (library,), {})
    with pytest.raises(ConfigError, match="became FSDPBlock after"):
        dtem.unpatch(model)
    model.blocks[1].__class__ = library
    whole = type(model)
    model.__class__ = type("FSDPModel", (type("FSDPModule", (nn.Module,), {}), whole), {})
    for change in (dtem.unpatch, copy.copy):
        with pytest.raises(ConfigError, match="became FSDPModel after"):
            change(model)
    model.__class__ = whole
    assert type(dtem.unpatch(model)) is VisionTransformer
    model.__class__ = type("FSDPVisionTransformer", (type("FSDPModule", (nn.Module,), {}), type(model)), {})
    with pytest.raises(ConfigError, match="FSDP has its weights already"):
        dtem.patch(model)


def test_a_model_that_compiles_in_place_is_copied_as_the_librarys():
    model = dtem.patch(drawn(), "tome", reduction=4)
    model.compile(backend="eager")
    expected = model.forward(images())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(images()), expected)


def test_an_embedding_that_was_made_in_inference_mode_learns():
    model = drawn()
    with torch.inference_mode():
        dtem.patch(model, "dtem", reduction=4, learns=True)
    model.train()(images()).sum().backward()
    assert model.blocks[0].metric.weight.grad is not None


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: nn.Sequential(nn.Identity(), model)])
def test_a_wrapper_is_refused_with_the_name_of_what_to_patch(wrap):
    for model in (drawn(), library_model("ViTModel")):
        with pytest.raises(ConfigError, match=r"patch its part `(module|1)`"):
            dtem.patch(wrap(model))
