"""Generation: equal to decoding with the whole model at every word, and to a beam search that keeps nothing;
what its options promise."""

from dataclasses import dataclass, replace

import pytest
import torch
from tiny import images
from tinycoca import LENGTH, ROUTES, caption_batch, caption_model, jitter, open_clip_coca, with_weights_of
from torch import Tensor

from pipeline.rng import generator
from tasks.captions.generation import Generation, SpecialTokens, generate

SPECIAL = SpecialTokens(pad=0, bos=1, eos=2)
VOCABULARY = 9
START = torch.full((5,), SPECIAL.bos)
OPTIONS = {
    "plain": {},
    "short": {"max_length": 3},
    "not too short": {"min_length": 6},
    "no word twice": {"no_repeat_ngram": 1},
    "no pair twice": {"no_repeat_ngram": 2, "min_length": 5},
    "no triple twice": {"no_repeat_ngram": 3, "max_length": 12, "min_length": 12},
    "likely": {"length_penalty": 0.0},
    "long": {"length_penalty": 2.0},
    "rather short": {"length_penalty": -1.0},
    "one beam": {"num_beams": 1},
    "many beams": {"num_beams": 12},
}


def next_logits(image: int, words: tuple[int, ...], sharpness: float = 2.0) -> Tensor:
    """A language model in which every prefix has its own next words; the end becomes likelier with length. In
    float64, as likelihoods are summed in another order than a reference does."""
    logits = torch.randn(VOCABULARY, generator=generator("language", image, *words)).double() * sharpness
    logits[SPECIAL.eos] += 0.4 * len(words) - 1
    return logits


@dataclass(frozen=True)
class Prefixes:
    """What the model above keeps: for each row its image and its words."""

    rows: tuple[tuple[int, tuple[int, ...]], ...]

    def take(self, rows):
        return Prefixes(tuple(self.rows[i] for i in rows.tolist()))


def language(images_: list[int]):
    def step(last, kept):
        if kept is None:
            beams = len(last) // len(images_)
            rows = tuple((image, ()) for image in images_ for _ in range(beams))
        else:
            rows = tuple(
                (image, (*words, int(word))) for (image, words), word in zip(kept.rows, last, strict=True)
            )
        return torch.stack([next_logits(*row) for row in rows]), Prefixes(rows)

    return step


def permitted(logits: Tensor, words: tuple[int, ...], config: Generation) -> Tensor:
    banned = {SPECIAL.pad, SPECIAL.bos} | ({SPECIAL.eos} if len(words) + 1 < config.min_length else set())
    if n := config.no_repeat_ngram:
        grams = {words[i : i + n] for i in range(len(words) - n + 1)}
        banned |= {word for word in range(len(logits)) if (*words[len(words) - n + 1 :], word) in grams}
    banned = banned if len(banned) < len(logits) else banned - {SPECIAL.eos}
    return logits.index_fill(0, torch.tensor(sorted(banned)), -torch.inf)


def reference_beams(score_next, config: Generation) -> list[int]:
    """Beam search by its definition, on lists, with the whole prefix given to the model each time."""
    live, ended = [(0.0, ())], []
    for length in range(1, config.max_length + 1):
        found = []
        for total, words in live:
            likelihood = permitted(score_next(words).log_softmax(dim=-1), words, config)
            found += [
                (total + value, (*words, word))
                for word, value in enumerate(likelihood.tolist())
                if value > -torch.inf
            ]
        found = sorted(found, reverse=True)[: 2 * config.num_beams]
        over = [
            (total, words)
            for total, words in found[: config.num_beams]
            if words[-1] == SPECIAL.eos or length == config.max_length
        ]
        ended = sorted(
            ended + [(total / length**config.length_penalty, words) for total, words in over], reverse=True
        )[: config.num_beams]
        live = [(total, words) for total, words in found if words[-1] != SPECIAL.eos][: config.num_beams]
        if not live or (
            len(ended) == config.num_beams and live[0][0] / length**config.length_penalty <= ended[-1][0]
        ):
            break
    return list(ended[0][1])


def unpadded(words: Tensor) -> list[list[int]]:
    """Rows up to their end; behind it there is only padding."""
    rows = []
    for row in words.tolist():
        length = row.index(SPECIAL.eos) + 1 if SPECIAL.eos in row else len(row)
        assert set(row[length:]) <= {SPECIAL.pad}
        rows.append(row[:length])
    return rows


@pytest.mark.parametrize("name", OPTIONS)
def test_beam_search_is_that_of_its_definition(name):
    config = Generation(**{"strategy": "beam", "max_length": 10, "num_beams": 3} | OPTIONS[name])
    found = unpadded(generate(language(list(range(5))), START, SPECIAL, config))
    assert found == [reference_beams(lambda words, i=i: next_logits(i, words), config) for i in range(5)]


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, options in OPTIONS.items()
        if options.keys() <= {"max_length", "min_length", "no_repeat_ngram"}
    ],
)
def test_greedy_takes_the_likeliest_word_that_is_permitted(name):
    config = Generation(**{"max_length": 10} | OPTIONS[name])
    expected = []
    for image in range(5):
        words: tuple[int, ...] = ()
        while len(words) < config.max_length and SPECIAL.eos not in words:
            words = (*words, int(permitted(next_logits(image, words), words, config).argmax()))
        expected.append(list(words))
    assert unpadded(generate(language(list(range(5))), START, SPECIAL, config)) == expected


@pytest.mark.parametrize("strategy", ["greedy", "beam", "top_p"])
def test_a_caption_is_the_same_in_any_batch_and_however_many_steps_are_taken(strategy):
    config = Generation(strategy=strategy, max_length=12, num_beams=3, top_p=0.95)
    keys = [f"image{i}" for i in range(5)]
    whole = unpadded(generate(language(list(range(5))), START, SPECIAL, config, keys=keys))
    assert whole == unpadded(
        generate(language(list(range(5))), START, SPECIAL, config, keys=keys, stop_early=False)
    )
    for i in range(5):
        assert (
            unpadded(generate(language([i]), START[:1], SPECIAL, config, keys=keys[i : i + 1]))
            == whole[i : i + 1]
        )
    assert len({len(caption) for caption in whole}) > 1


def test_top_p_draws_words_as_often_as_they_are_likely_among_the_likeliest():
    logits = torch.tensor([9.0, 9.0, 0.0, 1.0, 2.0, 3.0, -1.0, -2.0, 0.5])
    config = Generation(strategy="top_p", max_length=1, top_p=0.8, temperature=1.5)
    drawn = generate(
        lambda last, kept: (logits.expand(len(last), -1), None),
        torch.ones(4000, dtype=torch.int64),
        SPECIAL,
        config,
    )
    likelihood = permitted(logits, (), config).div(1.5).softmax(dim=-1)
    order = likelihood.sort(descending=True)
    nucleus = order.indices[: int((order.values.cumsum(0) < 0.8).sum()) + 1]
    expected = torch.zeros(VOCABULARY).index_copy(0, nucleus, likelihood[nucleus] / likelihood[nucleus].sum())
    assert 1 < len(nucleus) < 6
    torch.testing.assert_close(
        torch.bincount(drawn[:, 0], minlength=VOCABULARY) / 4000, expected, atol=0.03, rtol=0
    )


def test_top_p_depends_on_seed_and_key_alone():
    def drawn(seed=0, keys=("a", "b", "c", "d", "e")):
        return generate(
            language([7] * 5),
            START,
            SPECIAL,
            Generation(strategy="top_p", seed=seed, max_length=12),
            keys=keys,
        ).tolist()

    assert drawn() == drawn() != drawn(seed=1)
    assert unpadded(torch.tensor(drawn(keys="edcba"))) == unpadded(torch.tensor(drawn()))[::-1]
    assert unpadded(torch.tensor(drawn(keys="aaaaa"))) == unpadded(torch.tensor(drawn()))[:1] * 5


def test_a_single_choice_leaves_nothing_to_chance():
    settings = {"max_length": 10, "no_repeat_ngram": 2}
    greedy, narrow, one_beam = (
        unpadded(generate(language(list(range(5))), START, SPECIAL, Generation(**settings, **options)))
        for options in ({}, {"strategy": "top_p", "top_p": 1e-6}, {"strategy": "top_p", "temperature": 1e-4})
    )
    assert greedy == narrow == one_beam


@pytest.mark.parametrize("strategy", ["greedy", "beam", "top_p"])
def test_where_every_word_was_used_a_caption_ends(strategy):
    config = Generation(strategy=strategy, max_length=20, min_length=20, no_repeat_ngram=1, num_beams=2)
    for caption in unpadded(generate(language(list(range(5))), START, SPECIAL, config)):
        assert sorted(caption) == list(range(2, VOCABULARY)) and caption[-1] == SPECIAL.eos


# --- the captioner itself ---


def whole_model_logits(task, image, words: Tensor) -> Tensor:
    """Of the word behind `words` [R, T], bos included: the whole text tower and decoder, with nothing
    kept."""
    tokens = torch.cat([torch.full((len(words), 1), SPECIAL.bos), words], dim=1)
    return task.decoder(task.text(tokens)[0], image)[0][:, -1]


def decoded(task, rows):
    return [task.tokenizer.decode(row) for row in rows]


@torch.no_grad()
def test_greedy_captions_are_those_of_open_clips_whole_model_at_every_word():
    coca, num = open_clip_coca(), 12
    coca.text_decoder.ln_final.bias[0] = 1.0
    coca.text_decoder.text_projection[0, SPECIAL.eos] = 6.0  # so that captions end, some early and some late
    ours, pixels = with_weights_of(coca).double(), caption_batch(num).images.double()
    task = ours.tasks["caption"]
    latent, embeddings = coca.double()._encode_image(pixels)
    tokens, ended = torch.full((num, 1), SPECIAL.bos), torch.zeros(num, dtype=torch.bool)
    for _ in range(LENGTH - 1):
        logits = coca(None, tokens, image_latent=latent, image_embs=embeddings, output_labels=False)[
            "logits"
        ][:, -1]
        logits[:, [SPECIAL.pad, SPECIAL.bos]] = -torch.inf
        word = logits.argmax(dim=-1).masked_fill(ended, SPECIAL.pad)
        tokens, ended = torch.cat([tokens, word[:, None]], dim=1), ended | (word == SPECIAL.eos)
    made = task.generate(ours.backbone(pixels), config=Generation(max_length=LENGTH))
    assert made == decoded(task, tokens[:, 1:].tolist())
    assert len(set(made)) > 3 and len({len(caption.split()) for caption in made}) > 2


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 6, "no_repeat_ngram": 2}, {"min_length": 9, "length_penalty": 0.6}], ids=str
)
@torch.no_grad()
def test_beams_of_a_captioner_are_those_of_a_search_that_keeps_nothing(route, options):
    model = caption_model("tome", route=route).double().eval()
    jitter(model, 0.3)
    task, output = model.tasks["caption"], model.backbone(images(3).double())
    config = Generation(**{"strategy": "beam", "num_beams": 3, "max_length": 12} | options)
    image = task.image_tokens(output)

    def reference(i):
        size = None if image.size is None else image.size[i : i + 1]
        alone = replace(image, tokens=image.tokens[i : i + 1], size=size)
        return reference_beams(
            lambda words: whole_model_logits(task, alone, torch.tensor([words], dtype=torch.int64))[0], config
        )

    assert task.generate(output, config=config) == decoded(task, [reference(i) for i in range(3)])


@torch.no_grad()
def test_images_are_projected_once_and_not_once_for_each_beam():
    model = caption_model("tome", route="direct").eval()
    task, output = model.tasks["caption"], model.backbone(images(2))
    asked = []
    for cross in task.decoder.cross_attn:
        cross.ln_1_kv.register_forward_hook(lambda module, inputs, result: asked.append(tuple(result.shape)))
    task.generate(output, config=Generation(strategy="beam", num_beams=5, max_length=8, min_length=8))
    assert asked == [(2, 65 - 3 * 8, 32)] * len(task.decoder.cross_attn)


@torch.no_grad()
def test_lengths_are_cut_to_what_the_context_holds():
    model = caption_model().eval()
    jitter(model, 0.3)
    task, output = model.tasks["caption"], model.backbone(images(3))
    made = task.generate(output, config=Generation(max_length=500, min_length=400))
    assert {len(caption.split()) for caption in made} == {LENGTH - 1}


def test_the_option_of_the_task_is_its_way_of_generating():
    model = caption_model(generation={"strategy": "beam", "max_length": 4}).eval()
    task, output = model.tasks["caption"], model.backbone(images(2))
    assert task.generation == Generation(strategy="beam", max_length=4)
    assert task.generate(output) == task.generate(output, config=Generation(strategy="beam", max_length=4))
