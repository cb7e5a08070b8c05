"""What `patch` promises of any vision model of transformers: it is the same object, whose outputs and keys
stay; at r = 0 it computes what the library does; `unpatch` leaves nothing behind."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from sizes import check_embedded
from tiny import generator
from tiny_hugging_face import LABELS, MODELS, TEXT, TOWERS, inputs, library_model
from torch import nn

import dtem
from pipeline.backbone.patching.merging_model import MergingModel
from pipeline.backbone.rotary import RotaryRule
from pipeline.errors import CheckpointError, ConfigError

EVERY = pytest.mark.parametrize("name", MODELS)
FAMILY = pytest.mark.parametrize("name", TOWERS)
QUICK = ["DINOv3ViTModel"]
REST = [name for name in TOWERS if name not in QUICK and not name.startswith("Siglip2")]
"""Families whose program can be taken: that of SigLIP 2 cannot, patched or not, as transformers looks at the
sizes of the images."""


def outputs(model, batch, **options):
    """Name -> value of all outputs; those of blocks are a tuple."""
    with torch.no_grad():
        return dict(model(**batch, output_hidden_states=True, **options))


@EVERY
@pytest.mark.parametrize("policy", ["tome", "dtem"])
def test_no_reduction_is_the_library_and_unpatch_restores_it(name, policy):
    model, batch = library_model(name), inputs(name)
    before, keys, library = outputs(model, batch), list(model.state_dict()), type(model)
    known = {part: set(vars(own)) for part, own in model.named_modules()}
    kinds = {type(part).__name__ for part in model.modules()}
    assert len(before["hidden_states"]) == 4
    assert dtem.patch(model, policy, reduction=0) is model
    assert kinds <= {type(part).__name__ for part in model.modules()}, "what wraps layers finds them by name"
    assert isinstance(model, library) and [key for key in model.state_dict() if ".metric." not in key] == keys
    torch.testing.assert_close(outputs(model, batch), before, atol=1e-5, rtol=1e-5)
    assert dtem.unpatch(model) is model
    assert type(model) is library and list(model.state_dict()) == keys
    assert {part: set(vars(own)) for part, own in model.named_modules()} == known
    torch.testing.assert_close(outputs(model, batch), before, atol=0, rtol=0)


@EVERY
def test_merged_outputs_have_the_shapes_of_the_library(name):
    model, batch = library_model(name), inputs(name)
    before = outputs(model, batch)
    dtem.patch(model, "tome", reduction=3)
    after = outputs(model, batch)
    assert after.keys() == before.keys()
    for key, value in after.items():
        both = [[own] if isinstance(own, torch.Tensor) else own for own in (value, before[key])]
        assert [now.shape for now in both[0]] == [then.shape for then in both[1]], key
        assert all(now.isfinite().all() for now in both[0]), key
    main = next(iter(after))
    assert not torch.equal(after[main], before[main])
    with torch.no_grad():
        assert torch.equal(model(**batch)[0], after[main]), "no matter which other outputs are asked for"
        final = model.encode(*batch.values()).final
    assert final.tokens.shape[1] == after["hidden_states"][0].shape[1] - 9
    assert isinstance(model(**batch, return_dict=False), tuple)


@FAMILY
def test_forwards_keep_nothing_and_copies_are_models_of_their_own(name):
    """Two forwards, then two backwards; a copy, a pickle."""
    model = dtem.patch(library_model(name), "dtem", reduction=2)
    x, y = inputs(name), inputs(name, seed=2)
    known = set(vars(model))
    first, second = model(**x)[0], model(**y)[0]
    model.reduction = 1
    third = model(**x)[0]
    assert set(vars(model)) == known and not torch.equal(third, first)
    second.sum().backward()
    once = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    model.reduction = 2
    model(**y)[0].sum().backward()
    again = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert once and len(once) == len(again) and all(map(torch.equal, once, again))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(other, MergingModel) and torch.equal(other(**x)[0], first)
        assert not ({id(part) for part in other.modules()} & {id(part) for part in model.modules()})
        dtem.unpatch(other)
        assert type(other) is getattr(transformers, name)
    assert torch.equal(model(**x)[0], first)


@FAMILY
def test_a_token_of_size_two_counts_like_two_equal_patches(name):
    model, batch = dtem.patch(library_model(name).double(), "none", reduction=0), inputs(name)
    with torch.no_grad():
        tower = getattr(model, "tower", model)
        pixels, *rest = batch.values()
        check_embedded(model.merging_blocks, tower.embedded(pixels.double(), *rest))


DROPS = {
    "hidden_dropout_prob": 0.2,
    "attention_probs_dropout_prob": 0.2,
    "attention_dropout": 0.2,
    "drop_path_rate": 0.3,
    "pos_embed_rescale": 2.0,
}


@FAMILY
def test_what_is_drawn_in_training_is_as_in_the_library(name):
    """Dropout, paths, and the positions of DINOv3. A config keeps options of others too, which no model
    reads."""
    model, batch = library_model(name, **DROPS).train(), inputs(name)
    torch.manual_seed(3)
    before = model(**batch)[0]
    assert not torch.allclose(before, model(**batch)[0], atol=1e-2)
    dtem.patch(model, "tome", reduction=0)
    torch.manual_seed(3)
    torch.testing.assert_close(model(**batch)[0], before, atol=1e-5, rtol=1e-5)


@FAMILY
def test_half_precision_stays(name):
    """As a whole: single numbers of bfloat16 differ more under another rounding. VideoMAE takes its pixels as
    they are."""
    model, batch = library_model(name).bfloat16(), inputs(name)
    batch["pixel_values"] = batch["pixel_values"].bfloat16()
    before = outputs(model, batch)["hidden_states"][-1].float()
    dtem.patch(model, "dtem", reduction=0)
    after = outputs(model, batch)["hidden_states"][-1]
    assert after.dtype == torch.bfloat16
    assert (after.float() - before).norm() < 0.03 * before.norm()
    model.reduction = 3
    assert all(value.dtype == torch.bfloat16 for value in outputs(model, batch)["hidden_states"])


def test_states_of_some_layers_are_those_that_the_library_names():
    """As models of images and texts ask for them, for instance [-2]."""
    model, batch = library_model("SiglipVisionModel"), inputs("")
    with torch.no_grad():
        before = model(**batch, output_hidden_states=[1, -2]).hidden_states
        dtem.patch(model, "tome", reduction=0)
        after = model(**batch, output_hidden_states=[1, -2]).hidden_states
    assert [state is None for state in after] == [True, False, False, True]
    torch.testing.assert_close(after[1:3], before[1:3], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", QUICK + [pytest.param(name, marks=pytest.mark.slow) for name in REST])
def test_it_compiles_whole_and_is_exported(name):
    model, batch = dtem.patch(library_model(name), "dtem", reduction=[2, 0, 0]), inputs(name)
    one = {key: value[:1] for key, value in batch.items()}
    with torch.no_grad():
        expected = model(**batch)[0]
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(**batch)[0], expected, atol=1e-4, rtol=1e-4)
        dynamic = {key: {0: torch.export.Dim("batch", min=1)} for key in batch}
        program = torch.export.export(model, (), kwargs=batch, dynamic_shapes=dynamic)
        torch.testing.assert_close(program.module()(**one)[0], model(**one)[0], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*REST, "DINOv3ViTModel"])
def test_an_onnx_program_gives_its_outputs_in_onnxruntime(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model, batch = dtem.patch(library_model(name), "dtem", reduction=3), inputs(name)
    with torch.no_grad():
        torch.onnx.export(model, (), tmp_path / "model.onnx", kwargs=batch, dynamo=True, verbose=False)
        expected = model(**batch)[0]
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    found, *_ = session.run(None, {key: value.numpy() for key, value in batch.items()})
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-4, rtol=1e-4)


@EVERY
def test_eager_attention_merges_as_any_other(name):
    """Attention is our own in a patched model, so what transformers' eager function does with a mask does not
    matter."""
    batch = inputs(name)
    found = [
        outputs(dtem.patch(library_model(name, attn_implementation=kind), "tome", reduction=3), batch)
        for kind in ("eager", "sdpa")
    ]
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["Siglip2VisionModel", "Siglip2ForImageClassification"])
def test_an_image_of_siglip2_merges_with_padding_as_without(name):
    """In float64, as the choices of one block depend on those before."""
    model, batch = dtem.patch(library_model(name).double(), "tome", reduction=3), inputs(name)
    batch["pixel_values"] = batch["pixel_values"].double()
    other = {**batch, "pixel_values": batch["pixel_values"].clone()}
    other["pixel_values"][1, 24:] = 100.0
    alone = {key: value[1:, :24] for key, value in batch.items()}
    pooled = "logits" if "logits" in outputs(model, batch) else "pooler_output"
    for reduction in (3, 12, 0.7):
        model.reduction = reduction
        found = outputs(model, batch)[pooled]
        assert torch.equal(outputs(model, other)[pooled], found)
        torch.testing.assert_close(found[1:], outputs(model, alone)[pooled], atol=1e-7, rtol=1e-7)
        with torch.no_grad():
            state = model.encode(*batch.values()).final
        assert torch.equal(state.size.sum(dim=1), torch.tensor([30.0, 24.0]))
    with pytest.raises(ConfigError, match="give pixel_attention_mask"):
        model(**batch | {"pixel_attention_mask": None})


def test_a_model_of_images_and_texts_merges_its_image_tower_alone():
    config = transformers.CLIPConfig(text_config=TEXT, vision_config=MODELS["CLIPVisionModel"][1])
    model = transformers.CLIPModel(config).eval()
    batch = inputs("CLIPModel") | {"input_ids": torch.tensor([[1, 2, 3, 8]])}
    before = outputs(model, batch)
    dtem.patch(model, "tome", reduction=0)
    assert len(model.merging_blocks) == 3
    torch.testing.assert_close(outputs(model, batch), before, atol=1e-5, rtol=1e-5)
    model.reduction = 8
    after = outputs(model, batch)
    assert torch.equal(after["text_embeds"], before["text_embeds"])
    assert not torch.equal(after["image_embeds"], before["image_embeds"])


@pytest.mark.parametrize("name", ["ViTForImageClassification", "DINOv3ViTModel"])
def test_a_saved_model_is_the_librarys_again(name, tmp_path):
    model, batch = library_model(name), inputs(name)
    before = outputs(model, batch)
    dtem.patch(model, "dtem", reduction=3).save_pretrained(tmp_path)
    again = getattr(transformers, name).from_pretrained(tmp_path)
    assert again.config.architectures == [name]
    torch.testing.assert_close(outputs(again, batch), before, atol=0, rtol=0)


@pytest.mark.parametrize(
    "name", ["ViTForImageClassification", "CLIPForImageClassification", "SiglipForImageClassification"]
)
def test_a_pipeline_of_transformers_runs_a_merging_classifier(name, caplog):
    model = dtem.patch(library_model(name), "tome", reduction=3)
    processor = transformers.ViTImageProcessor(size={"height": 64, "width": 64})
    classify = transformers.pipeline("image-classification", model=model, image_processor=processor)
    pixels = torch.randint(256, (50, 70, 3), generator=generator(5)).numpy().astype(np.uint8)
    picture = Image.fromarray(pixels)
    with torch.no_grad():
        logits = model(**processor(picture, return_tensors="pt")).logits[0]
    best, *_ = classify(picture, top_k=LABELS["num_labels"])
    assert best["label"] == model.config.id2label[int(logits.argmax())]
    assert best["score"] == pytest.approx(float(logits.softmax(dim=0).max()), abs=1e-5)
    assert "not supported" not in caplog.text


@pytest.mark.parametrize("name", ["Dinov2Model", "DINOv3ViTModel"])
def test_a_pipeline_of_transformers_extracts_the_features_of_all_positions(name, caplog):
    model = dtem.patch(library_model(name), "tome", reduction=3)
    processor = transformers.ViTImageProcessor(size={"height": 64, "width": 64})
    extract = transformers.pipeline("image-feature-extraction", model=model, image_processor=processor)
    picture = Image.new("RGB", (70, 50), "brown")
    with torch.no_grad():
        wanted = model(**processor(picture, return_tensors="pt"))
    torch.testing.assert_close(extract(picture, return_tensors=True), wanted.last_hidden_state)
    torch.testing.assert_close(extract(picture, return_tensors=True, pool=True), wanted.pooler_output)
    assert "not supported" not in caplog.text


def test_an_adapter_of_one_model_is_applied_to_its_equal(tmp_path):
    name = "DINOv3ViTModel"
    taught = dtem.patch(library_model(name), "dtem", reduction=3, rotary=RotaryRule("destination"))
    with torch.no_grad():
        for block in taught.merging_blocks:
            block.metric.weight.copy_(torch.randn(block.metric.weight.shape, generator=generator(3)))
    dtem.save_adapter(taught, tmp_path / "own")
    other = dtem.patch(library_model(name), adapter=tmp_path / "own")
    assert other.reduction == 3 and other.merging == replace(taught.merging, policy=other.merging.policy)
    assert torch.equal(other(**inputs(name))[0], taught(**inputs(name))[0])
    base = library_model("Dinov2Model")
    with pytest.raises(CheckpointError, match="taught on DINOv3ViTModel"):
        dtem.patch(base, adapter=tmp_path / "own")
    assert type(base) is transformers.Dinov2Model


class Wrapped(nn.Module):
    """A model inside another module, as a trainer wraps it."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, **batch):
        return self.model(**batch)


@pytest.mark.parametrize("name", ["ViTForImageClassification", "Dinov2ForImageClassification"])
def test_a_step_of_training_teaches_weights_and_embeddings_also_with_checkpointing(name):
    batch = inputs(name) | {"labels": torch.tensor([1, 4])}
    losses = []
    for recompute in (False, True):
        model = dtem.patch(library_model(name), "dtem", reduction=3, learns=True)
        if recompute:
            model.activation_checkpointing_enable()
            model.merging_blocks[0].register_forward_pre_hook(lambda *_: losses.append("forward"))
        wrapped = Wrapped(model).train()
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.01)
        loss = wrapped(**batch).loss
        loss.backward()
        losses.append(float(loss.detach()))
        moved = {key for key, parameter in wrapped.named_parameters() if parameter.grad is not None}
        assert any(".metric." in key for key in moved) and "model.classifier.weight" in moved
        optimizer.step()
        losses.append(float(wrapped(**batch).loss.detach()))
    first, then, *rest = losses
    assert then < first
    assert rest[:2] == ["forward", "forward"], "the block runs again in the backward pass"
    assert [loss for loss in rest if loss != "forward"] == pytest.approx([first, then], abs=1e-5)


@EVERY
def test_a_mask_of_attention_is_refused(name):
    model = dtem.patch(library_model(name))
    with pytest.raises(ConfigError, match="leave attention_mask out"):
        model(**inputs(name), attention_mask=torch.ones(2, 65))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda model: dtem.patch(dtem.patch(model)), "patched already"),
        (lambda model: (dtem.patch(model), dtem.patch(model.vit)), "ViTModel is patched already"),
        (lambda model: (dtem.patch(model.vit), dtem.patch(model)), "ViTModel is patched already"),
        (lambda model: dtem.unpatch(model), "is not patched"),
        (lambda model: dtem.patch(model)(**inputs(""), output_attentions=True), "leave output_attentions"),
        (lambda model: dtem.patch(model, reduction=-1), "reduction"),
        (lambda model: dtem.patch(library_model("ViTModel", output_attentions=True)), "output_attentions"),
        (lambda model: dtem.patch(bert()), "BertModel of transformers cannot merge"),
        (lambda model: dtem.patch(for_detectors()), "Dinov2Backbone of transformers cannot merge"),
        (lambda model: dtem.patch(model.vit.layers[0]), "ViTLayer of transformers cannot merge"),
        (lambda model: dtem.patch(with_two_towers()), "has 2 image towers"),
        (lambda model: dtem.patch(with_other_attention()), "its attention is Identity"),
        (lambda model: dtem.patch(with_layers_elsewhere()), "has its layers elsewhere; run pip install"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(change, reason):
    model, batch = library_model("ViTForImageClassification"), inputs("")
    before = outputs(model, batch)
    with pytest.raises(ConfigError, match=reason):
        change(model)
    for part in (model, model.vit):
        if isinstance(part, MergingModel):
            dtem.unpatch(part)
    torch.testing.assert_close(outputs(model, batch), before, atol=0, rtol=0)


def test_a_tower_that_was_unpatched_alone_is_patched_again():
    model, batch = library_model("ViTForImageClassification"), inputs("")
    before = outputs(model, batch)
    dtem.unpatch(dtem.patch(model, "tome").vit)
    with pytest.raises(ConfigError, match="unpatched alone; patch it again"):
        dtem.unpatch(model)
    dtem.patch(model.vit, "tome")
    assert model.reduction == 13
    torch.testing.assert_close(outputs(dtem.unpatch(model), batch), before, atol=0, rtol=0)


def bert():
    return transformers.BertModel(transformers.BertConfig(**TEXT))


def for_detectors():
    return transformers.Dinov2Backbone(transformers.Dinov2Config(**MODELS["Dinov2Model"][1]))


def with_two_towers():
    model = library_model("CLIPVisionModelWithProjection")
    model.second = library_model("SiglipVisionModel")
    return model


def with_other_attention():
    model = library_model("ViTModel")
    model.layers[1].attention = nn.Identity()
    return model


def with_layers_elsewhere():
    model = library_model("ViTModel")
    model.encoder = model.layers
    del model.layers
    return model
