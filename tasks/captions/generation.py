"""Generation of captions word by word: greedy, beam search, or sampling from the most likely words (top-p).

It knows no model: a step maps the last words, and a cache of the words before, to logits of the next words.
Captions of a batch do not depend on each other, so a caption is the same in any batch. B images, K beams,
R = B * K rows, T words so far, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import ConfigError
from pipeline.rng import generator
from pipeline.token_state import widened

STRATEGIES = ("greedy", "beam", "top_p")


class Cache(Protocol):
    """What a decoder keeps of the words so far, for instance keys and values of its attention."""

    def take(self, rows: Tensor) -> "Cache":
        """The cache of these rows, int64 [R], for the same images. Rows of an image stay side by side."""
        ...


Step = Callable[[Tensor, Any], tuple[Tensor, Cache]]
"""Maps the last words, int64 [R], and the cache, or None at the start, to logits of the next words [R, V] and
the new cache."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Options of generation. Lengths count tokens, `eos` included."""

    strategy: str = "greedy"
    max_length: int = 30
    min_length: int = 1
    """Captions do not end before this length."""
    no_repeat_ngram: int = 0
    """No sequence of so many words occurs twice in a caption; 0 is off."""
    num_beams: int = 4
    """beam: number of unfinished captions that are followed."""
    length_penalty: float = 1.0
    """beam: captions are compared by log-likelihood / length ** length_penalty."""
    top_p: float = 0.9
    """top_p: words are drawn from the smallest set with this likelihood."""
    temperature: float = 1.0
    """top_p: divisor of the logits."""
    seed: int = 0
    """top_p: draws are a function of it and the key of the image."""

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ConfigError(
                f"generation.strategy is {self.strategy!r}; give one of {', '.join(STRATEGIES)}"
            )
        for name, least in {
            "max_length": 1,
            "min_length": 1,
            "no_repeat_ngram": 0,
            "num_beams": 1,
            "seed": 0,
        }.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"generation.{name} is {value!r}; give a whole number from {least}")
        if self.min_length > self.max_length:
            raise ConfigError(
                f"generation.min_length {self.min_length} is above max_length {self.max_length}"
            )
        if not (0 < self.top_p <= 1 and self.temperature > 0):
            raise ConfigError(
                f"generation: top_p {self.top_p} must be in (0, 1] and temperature {self.temperature} above 0"
            )


@dataclass(frozen=True)
class SpecialTokens:
    """Numbers of the tokens that are no words: padding, start and end of a caption."""

    pad: int
    bos: int
    eos: int


def generate(
    step: Step,
    start: Tensor,
    special: SpecialTokens,
    config: Generation,
    *,
    keys: Sequence[str] = (),
    stop_early: bool = True,
) -> Tensor:
    """[B, T] int64: the words of each caption after `bos`, up to `eos`, then padding.

    start [B]: `bos` for each image, on the device. keys: names of the images, which address the draws of
    top_p; without keys their positions in the batch do. stop_early False: always takes max_length steps, with
    the same result.
    """
    if config.strategy == "beam":
        return _beam_search(step, start, special, config, stop_early)
    if config.strategy == "greedy":
        choose = _most_likely
    else:
        choose = _Nucleus(config, keys or [str(i) for i in range(len(start))], start.device)
    words, ended, cache, last = start[:, None][:, :0], torch.zeros_like(start, dtype=torch.bool), None, start
    for _ in range(config.max_length):
        logits, cache = step(last, cache)
        scores = _allowed(widened(logits), words, special, config)
        last = choose(scores, words.shape[1]).masked_fill(ended, special.pad)
        words, ended = torch.cat([words, last[:, None]], dim=1), ended | (last == special.eos)
        if stop_early and ended.all():
            break
    return words


def _most_likely(logits: Tensor, position: int) -> Tensor:
    return logits.argmax(dim=-1)


class _Nucleus:
    """Draws words by the inverse of their distribution function, from a uniform number per word that the
    image's key addresses."""

    def __init__(self, config: Generation, keys: Sequence[str], device: torch.device):
        drawn = [
            torch.rand(
                config.max_length, generator=generator(config.seed, "caption", key), dtype=torch.float64
            )
            for key in keys
        ]
        self.uniform = torch.stack(drawn).to(device, torch.float32)
        self.config = config

    def __call__(self, logits: Tensor, position: int) -> Tensor:
        likelihood, word = (
            (logits / self.config.temperature).softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
        )
        before = likelihood.cumsum(dim=-1) - likelihood
        likelihood = likelihood.masked_fill((before >= self.config.top_p) & (before > 0), 0.0)
        upto = likelihood.cumsum(dim=-1)
        rank = (upto <= self.uniform[:, position, None] * upto[:, -1:]).sum(dim=-1, keepdim=True)
        last = (likelihood > 0).sum(dim=-1, keepdim=True) - 1
        return word.gather(-1, torch.minimum(rank, last))[:, 0]


def _beam_search(
    step: Step, start: Tensor, special: SpecialTokens, config: Generation, stop_early: bool
) -> Tensor:
    """The best ended caption of each image. A caption ends where `eos` is among the K best continuations of
    all beams.

    An image is done when K captions have ended, and no unfinished caption has, at its present length, a
    better score than the worst of them. A caption that has not ended at max_length counts as it is.
    """
    batch, beams, longest = len(start), config.num_beams, config.max_length
    words = start.new_empty(batch, beams, 0)
    total = torch.full((batch, beams), -torch.inf, device=start.device)
    ended, score = start.new_full((batch, beams, longest), special.pad), total.clone()
    done = torch.zeros_like(start, dtype=torch.bool)
    total[:, 0] = 0.0
    cache, last = None, start.repeat_interleave(beams)
    for length in range(1, longest + 1):
        logits, cache = step(last, cache)
        likelihood = _allowed(widened(logits).log_softmax(dim=-1), words.flatten(0, 1), special, config).view(
            batch, beams, -1
        )
        best, place = (total[..., None] + likelihood).flatten(1).topk(2 * beams, dim=-1)
        beam, word = place // likelihood.shape[-1], place % likelihood.shape[-1]
        found = torch.cat([_rows(words, beam), word[..., None]], dim=-1)

        ends = word == special.eos
        counts = (ends[:, :beams] | (length == longest)) & ~done[:, None]
        reached = (best[:, :beams] / length**config.length_penalty).masked_fill(~counts, -torch.inf)
        score, rank = torch.cat([score, reached], dim=1).topk(beams, dim=-1)
        padded = F.pad(found[:, :beams], (0, longest - length), value=special.pad)
        ended = _rows(torch.cat([ended, padded], dim=1), rank)

        total, rank = best.masked_fill(ends, -torch.inf).topk(beams, dim=-1)
        words, beam = _rows(found, rank), beam.gather(1, rank)
        done = done | (total[:, 0] / length**config.length_penalty <= score[:, -1])
        if stop_early and done.all():
            break
        last, cache = words[..., -1].flatten(), cache.take(_flat(beam))
    return ended[:, 0]


def _flat(beam: Tensor) -> Tensor:
    """The rows [R] of beams [B, K], which are numbered within each image."""
    return (beam + torch.arange(len(beam), device=beam.device)[:, None] * beam.shape[1]).flatten()


def _rows(values: Tensor, rows: Tensor) -> Tensor:
    """[B, K, T]: the given rows [B, K] of values [B, M, T]."""
    return values.gather(1, rows[..., None].expand(-1, -1, values.shape[-1]))


def _allowed(scores: Tensor, words: Tensor, special: SpecialTokens, config: Generation) -> Tensor:
    """The scores [R, V], minus infinity for tokens that may not follow the words [R, T]. If none may follow,
    `eos` may."""
    scores = scores.clone()
    scores[:, special.pad] = scores[:, special.bos] = -torch.inf
    size, length = config.no_repeat_ngram, words.shape[1]
    if 0 < size <= length:
        grams = words.unfold(1, size, 1)
        again = (grams[..., :-1] == words[:, None, length - size + 1 :]).all(dim=-1)
        blocked = torch.where(again, -torch.inf, torch.inf).to(scores.dtype)
        scores = scores.scatter_reduce(1, grams[..., -1], blocked, "amin")
    if length + 1 < config.min_length:
        scores[:, special.eos] = -torch.inf
    nothing = scores.isneginf().all(dim=-1)
    scores[:, special.eos] = scores[:, special.eos].masked_fill(nothing, 0.0)
    return scores
