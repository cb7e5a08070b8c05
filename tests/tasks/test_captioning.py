"""Captioning: open_clip's CoCa at r = 0, sizes told in both routes, losses, and what the objectives ask of
the task."""

import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from objectives_for import objectives_for
from tiny import RELAXED, images
from tiny_lemevit import tiny_lemevit
from tinycoca import (
    LENGTH,
    ROUTES,
    SPEC,
    TOKENIZER,
    caption_batch,
    caption_model,
    captions,
    jitter,
    open_clip_coca,
    repeated,
    with_weights_of,
)
from torch.nn import functional as F

from pipeline.config.load import load_config
from pipeline.errors import ConfigError
from pipeline.interfaces import StepSpec
from pipeline.model import TASKS, MultiTaskModel, build_model
from pipeline.objectives import OBJECTIVES
from pipeline.token_state import BackboneOutput
from tasks.captioning import CaptioningTask
from tasks.captions.losses import contrastive_loss
from tasks.open_clip_bridge.weights import caption_weights, image_tower_weights

ROOT = Path(__file__).parents[2]
ROUTE = pytest.mark.parametrize("route", ROUTES)


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_coca_without_merging_is_open_clips(quick_gelu):
    """Outputs, both losses, and the gradient of every weight of the image tower, the text tower, the pooler
    and the decoder."""
    from open_clip.loss import CoCaLoss

    coca = open_clip_coca(quick_gelu)
    ours = with_weights_of(
        coca,
        vit={"act_layer": "quick_gelu" if quick_gelu else "gelu"},
        model=SPEC | {"quick_gelu": quick_gelu},
    )
    batch = caption_batch(4, LENGTH)
    theirs = coca(batch.images, batch.targets.tokens)
    contrastive, caption = CoCaLoss(2.0, 1.0)(**theirs)
    output = ours(batch, StepSpec(reduction=0))
    words = batch.targets.tokens[:, 1:] != 0
    torch.testing.assert_close(output.predictions[words], theirs["logits"][words], atol=1e-5, rtol=1e-5)
    logged = {name: (total / count) for name, (total, count) in output.logs.items()}
    expected = {"loss": contrastive + caption, "caption_loss": caption, "contrastive_loss": contrastive}
    torch.testing.assert_close(logged, {name: value.detach() for name, value in expected.items()})
    (contrastive + caption).backward()
    output.loss.backward()
    grads = {name: parameter.grad for name, parameter in coca.named_parameters()}
    wanted = {f"backbone.{name}": grad for name, grad in image_tower_weights(grads).items()}
    wanted |= {f"tasks.caption.{name}": grad for name, grad in caption_weights(grads).items()}
    assert wanted.keys() == {name for name, _ in ours.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(
            parameter.grad, wanted[name], atol=1e-5, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_views_of_one_image_are_not_contrasted_but_all_captions_are_learned():
    ours, batch = with_weights_of(open_clip_coca()), caption_batch(4, LENGTH)
    logs = {views: ours(replace(batch, views=views), StepSpec(reduction=0)).logs for views in (1, 2, 4)}
    contrast = [float(logs[views]["contrastive_loss"][0]) for views in (1, 2, 4)]
    assert contrast[0] > contrast[1] > contrast[2] == 0
    assert len({float(said["caption_loss"][0]) for said in logs.values()}) == 1


def test_features_are_open_clips_and_do_not_depend_on_padding():
    coca = open_clip_coca()
    ours, batch = with_weights_of(coca), caption_batch(4, LENGTH)
    task = ours.tasks["caption"]
    with torch.no_grad():
        theirs = coca(batch.images, batch.targets.tokens)
        torch.testing.assert_close(task.image_features(ours.backbone(batch.images)), theirs["image_features"])
        for length in range(12, LENGTH + 1):
            torch.testing.assert_close(
                task.text_features(captions(4, length).tokens), theirs["text_features"]
            )
        assert (theirs["text_features"][0] - theirs["text_features"][1]).abs().max() > 1e-2


def test_a_caption_that_fills_its_batch_has_the_feature_of_one_that_does_not():
    task = caption_model().tasks["caption"]
    jitter(task)
    for words in range(2, LENGTH + 1):
        tokens = torch.tensor([[1, *(4 + i % 13 for i in range(words - 2)), 2]])
        with torch.no_grad():
            alone, padded = task.text_features(tokens), task.text_features(F.pad(tokens, (0, LENGTH - words)))
        torch.testing.assert_close(alone, padded)


@ROUTE
def test_a_token_of_size_s_is_s_copies_of_it(route):
    """Logits of a merged image equal those of the image with each merged token repeated, without sizes."""
    model = caption_model("tome", reduction=14, route=route).double().eval()
    jitter(model)
    task, tokens = model.tasks["caption"], captions(1).tokens

    def answers(state):
        image = task.image_tokens(BackboneOutput(state))
        return task.decoder(task.text(tokens)[0], image)[0], image.feature

    with torch.no_grad():
        merged = model.backbone(images(1).double()).final
        merged = replace(merged, size=merged.size.double())
        copies = repeated(merged.tokens, merged.size)
        spread = replace(merged, tokens=copies, size=torch.ones(copies.shape[:2]).double())
        logits, feature = answers(merged)
        expected, expected_feature = answers(spread)
        blind, _ = answers(replace(merged, size=torch.ones_like(merged.size)))
    assert merged.size.max() > 1 and copies.shape[1] == 65 and logits.std() > 0.1
    torch.testing.assert_close(logits, expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(feature, expected_feature, atol=1e-9, rtol=0)
    assert (blind - expected).abs().max() > 1e-4


@ROUTE
def test_an_empty_token_is_as_if_it_were_not_there(route):
    """A relaxed merge keeps all tokens, some of them with nothing left."""
    model = caption_model("none", route=route).eval()
    jitter(model)
    task, tokens = model.tasks["caption"], captions(2).tokens
    with torch.no_grad():
        state = model.backbone(images(2)).final
    size = state.size.clone()
    size[:, -9:] = 0
    empty = replace(state, size=size.requires_grad_())
    without = replace(state, tokens=state.tokens[:, :-9], size=state.size[:, :-9])
    got, expected = (
        task.decoder(task.text(tokens)[0], task.image_tokens(BackboneOutput(each)))[0]
        for each in (empty, without)
    )
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    got.square().sum().backward()
    assert size.grad.isfinite().all() and size.grad[:, :-9].abs().max() > 0


@ROUTE
@pytest.mark.parametrize("variant", RELAXED)
@pytest.mark.parametrize("objective", objectives_for(CaptioningTask))
def test_every_objective_trains_the_metric_embeddings_alone(objective, variant, route):
    trained = caption_model(variant, objective=objective, route=route).train()
    jitter(trained.tasks)
    for name, parameter in trained.named_parameters():
        parameter.requires_grad_(".metric." in name)
    output = trained(caption_batch())
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(
        block.metric.weight.grad.isfinite().all() and block.metric.weight.grad.any()
        for block in trained.backbone.blocks[:-1]
    )
    assert all(parameter.grad is None for parameter in trained.tasks.parameters())


@ROUTE
def test_a_decoder_looks_at_fewer_tokens_only_on_the_direct_route(route):
    model = caption_model("tome", reduction=14, route=route).eval()
    image = model.tasks["caption"].image_tokens(model.backbone(images(2)))
    assert image.tokens.shape == ((2, 65 - 3 * 14, 32) if route == "direct" else (2, 5, 32))
    assert (image.size is None) == (route == "pooler")


@ROUTE
@pytest.mark.parametrize(
    "prefix",
    ["registers, no class token, average pooling", "mae: class token, average pooling, norm after it"],
)
def test_other_backbones_have_a_norm_and_a_feature(route, prefix):
    trained = caption_model(prefix=prefix, route=route).train()
    trained(caption_batch()).loss.backward()
    norms = {
        name for name, parameter in trained.named_parameters() if "norm" in name and parameter.grad is None
    }
    assert not norms
    assert all(parameter.grad is not None for parameter in trained.tasks.parameters())


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_padding_costs_nothing(label_smoothing):
    model = caption_model(label_smoothing=label_smoothing).eval()
    jitter(model.tasks)
    short, long = (model(replace(caption_batch(), targets=captions(4, length))) for length in (12, LENGTH))
    torch.testing.assert_close(short.loss, long.loss)
    words = captions(4, 12).tokens[:, 1:]
    expected = F.cross_entropy(
        short.predictions[words != 0], words[words != 0], label_smoothing=label_smoothing
    )
    total, count = short.logs["caption_loss"]
    torch.testing.assert_close(total / count, 2 * expected.detach())


def test_words_count_and_padding_does_not():
    """So what is said of a caption does not depend on what it is padded to."""
    model = caption_model().eval()
    jitter(model.tasks)
    short, long = (replace(caption_batch(), targets=captions(4, length)) for length in (12, LENGTH))
    one, other = (model.tasks["caption"].log_probs(model.predict(each), each) for each in (short, long))
    assert torch.equal(one.counts, short.targets.tokens[:, 1:] != 0) and not one.counts.all()
    assert torch.equal(other.counts[:, :11], one.counts) and not other.counts[:, 11:].any()
    torch.testing.assert_close(other.values[other.counts], one.values[one.counts])


@ROUTE
def test_without_the_contrastive_part_nothing_idles(route):
    trained = caption_model(route=route, contrastive_weight=0.0).train()
    task = trained.tasks["caption"]
    output = trained(caption_batch())
    output.loss.backward()
    assert "contrastive_loss" not in output.logs
    assert not [name for name, parameter in trained.tasks.named_parameters() if parameter.grad is None]
    for ask in (
        lambda: task.text_features(captions(1).tokens),
        lambda: task.image_features(trained.backbone(images(1))),
    ):
        with pytest.raises(ConfigError, match="contrastive_weight is 0"):
            ask()


def test_a_caption_loss_is_the_same_with_and_without_the_contrastive_part():
    with_it, without = caption_model(), caption_model(contrastive_weight=0.0)
    without.load_state_dict(with_it.state_dict(), strict=False)
    one, other = (model.eval()(caption_batch()) for model in (with_it, without))
    torch.testing.assert_close(one.logs["caption_loss"], other.logs["caption_loss"])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"route": "cross"}, "pooler or direct"),
        ({"caption_weight": 0}, "above 0"),
        ({"label_smoothing": 1.0}, r"\[0, 1\)"),
        ({"tokenizer": {"type": "wrds", "words": ["a"]}}, "did you mean 'words'"),
        ({"tokenizer": {}}, "no type"),
        ({"generation": {"beams": 3}}, "no option 'beams'"),
        ({"generation": {"strategy": "best"}}, "greedy, beam, top_p"),
        ({"generation": {"num_beams": 0}}, "from 1"),
        ({"generation": {"min_length": 9, "max_length": 8}}, "above max_length"),
        ({"generation": {"top_p": 0}}, "top_p"),
        ({"model": SPEC | {"text_cfg": SPEC["text_cfg"] | {"qk_norm": True}}}, "plain blocks"),
        ({"model": SPEC | {"text_cfg": SPEC["text_cfg"] | {"proj_bias": True}}}, "proj_bias"),
        ({"tokens": 3}, "its options: model, tokenizer"),
    ],
    ids=str,
)
def test_a_task_that_cannot_be_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        caption_model(**options)


@pytest.mark.parametrize(
    "name", ["coco_coca_vit_base_dtem", "coco_git_style_vit_base_dtem", "digits_captioning"]
)
def test_the_model_of_a_config_can_be_built(name):
    """Without memory for its weights, and without loading any."""
    config = load_config(ROOT / f"configs/{name}.py")
    (task,) = config.tasks.values()
    with torch.device("meta"):
        model = build_model(
            replace(config, backbone=replace(config.backbone, pretrained=False, weights=None))
        )
    captioner = next(iter(model.tasks.values()))
    assert (
        captioner.route == task.head["route"]
        and captioner.generation.max_length < captioner.tokenizer.context_length
    )


def features_of_two_ranks(rank: int, folder: Path, sizes: tuple[int, int], told) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2
    )
    torch.manual_seed(rank)
    try:
        loss = contrastive_loss(
            *(F.normalize(torch.randn(sizes[rank], 4), dim=-1) for _ in range(2)), torch.tensor(2.0)
        )
        told.put(float(loss))
    except RuntimeError as err:
        told.put(str(err))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    "sizes, said", [((3, 3), None), ((4, 3), "a rank has another batch size than this one's")]
)
def test_ranks_with_batches_of_different_sizes_say_so_and_end(tmp_path, sizes, said):
    """Two processes that are forked, so that they need not import torch again."""
    context = multiprocessing.get_context("fork")
    told = context.Queue()
    ranks = [
        context.Process(target=features_of_two_ranks, args=(rank, tmp_path, sizes, told)) for rank in range(2)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0, 0], (
        "a backend that was not stopped in time ends the process"
    )
    found = [told.get(timeout=600) for _ in ranks]
    assert all(said in text for text in found) if said else all(loss > 0 for loss in found)


@ROUTE
def test_a_decoder_reads_patches_and_meta_tokens_alike(route):
    """Those of LeMeViT: 4 patches of its last stage, and 4 meta tokens."""
    backbone = tiny_lemevit()
    task = TASKS.build("captioning", backbone, model=SPEC, tokenizer=TOKENIZER, route=route)
    trained = MultiTaskModel(backbone, {"caption": task}, OBJECTIVES.build("supervised")).train()
    if route == "direct":
        assert task.image_tokens(trained.encode("caption", images())).tokens.shape[1] == 8
    trained(caption_batch(4)).loss.backward()
    idle = [name for name, own in trained.named_parameters() if own.grad is None]
    assert idle == []
