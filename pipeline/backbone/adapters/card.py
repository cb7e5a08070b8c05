"""The model card of an adapter, as the Hugging Face hub shows it. It says what the configuration says."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import timm
import yaml

from pipeline.backbone.adapters.config import AdapterConfig, Base, Curve, CurvePoint, Recipe
from pipeline.errors import printable

LIBRARY = "dtem"
DEFAULT_POLICY = "dtem"
"""The policy of `patch` where none is named."""
ORDER = ("none", "tome", "random")
"""Policies whose columns come first, before those that learn."""


def card_text(config: AdapterConfig, name: str) -> str:
    """The card in Markdown. name: of the folder or repository, for the title and the lines of code."""
    parts = [
        f"---\n{_header(config)}---\n\n# {_words(name)}",
        _what(config),
        "## Use\n\n```python\n" + _use(config, name) + "\n```",
        *(_curve(curve) for curve in config.curves),
        *_recipe(config.recipe),
        _checked(config.base),
        *_made_with(config.made_with),
    ]
    return "\n\n".join(parts) + "\n"


def is_written(card: str, config: AdapterConfig) -> bool:
    """Whether a card is what `card_text` says of the configuration, under whatever name."""
    named = re.search(r'adapter="([^"]*)"', card)
    return named is not None and card == card_text(config, named[1])


def _header(config: AdapterConfig) -> str:
    facts: dict[str, Any] = {"library_name": LIBRARY}
    known = {"base_model": config.base.name, "license": config.license}
    facts |= {key: value for key, value in known.items() if value}
    if config.base.name:
        facts["base_model_relation"] = "adapter"
    facts["tags"] = [LIBRARY, "token-merging", "vision-transformer", f"policy:{config.merging.policy}"]
    return yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)


def _what(config: AdapterConfig) -> str:
    base, merging = config.base, config.merging
    text = (
        f"A merge adapter for {_code(base.name or base.architecture)}: the metric embeddings by which the "
        f"policy {_code(merging.policy)} decides which tokens to merge, one linear layer for each of its "
        f"{base.depth} blocks. The base model is not in it."
    )
    if merging.reduction is not None:
        text += f" Recommended reduction: {_code(str(merging.reduction))}."
    if merging.rotary:
        text += f" Rotary positions merge by the rule {_code(merging.rotary)}."
    if config.pixels:
        text += f" Images: mean {list(config.pixels.mean)}, std {list(config.pixels.std)}."
    return text


def _use(config: AdapterConfig, name: str) -> str:
    policy, reduction = config.merging.policy, config.merging.reduction
    given = [] if policy == DEFAULT_POLICY else [f"policy={_text(policy)}"]
    given += [] if reduction is None else [f"reduction={reduction}"]
    merged = ", ".join([*given, f"adapter={_text(name)}"])
    return "\n".join([*_base_lines(config.base), f"dtem.patch(model, {merged})"])


def _base_lines(base: Base) -> list[str]:
    """The lines of code that build the base."""
    own = "  # with the weights it was taught on"
    if timm.is_model(base.architecture):
        options = "".join(f", {_plain(name)}={value!r}" for name, value in base.options.items())
        named, untold = ("", own) if base.name is None else (", pretrained=True", "")
        load = f"model = timm.create_model({_text(_name_for_timm(base))}{named}{options}){untold}"
        return ["import dtem, timm", load]
    kind = base.architecture if base.architecture.isidentifier() else "AutoModel"
    place, untold = ("FOLDER", own) if base.name is None else (base.name, "")
    load = f"model = {kind}.from_pretrained({_text(place)}){untold}"
    return [f"import dtem; from transformers import {kind}", load]


def _name_for_timm(base: Base) -> str:
    """What timm.create_model takes. Weights of timm that serve two architectures have the name of one."""
    if base.name is None:
        return base.architecture
    named = base.name.removeprefix("timm/")
    architecture, _, tag = named.partition(".")
    if named != base.name and tag and architecture != base.architecture:
        return f"{base.architecture}.{tag}"
    return f"hf-hub:{base.name}"


def _curve(curve: Curve) -> str:
    policies = sorted(
        {policy for point in curve.points for policy in point.scores},
        key=lambda policy: (ORDER.index(policy) if policy in ORDER else len(ORDER), policy),
    )
    unit = f" ({curve.unit})" if curve.unit else ""
    of = [f"{curve.samples} samples"] if curve.samples else []
    of += [f"split {curve.split}"] if curve.split else []
    title = f"## {_words(curve.task)}: {_words(curve.metric + unit)}" + (
        f", {_words(', '.join(of))}" if of else ""
    )
    head = ["MACs", "reduction", *map(_column, policies)]
    rows = [_row(point, policies, 100 if curve.unit == "%" else 1) for point in curve.points]
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---:"] * len(head), *rows)]
    return f"{title}\n\n" + "\n".join(lines)


def _row(point: CurvePoint, policies: Sequence[str], factor: int) -> list[str]:
    """factor: of the scores, by their unit."""
    known = {policy: f"{factor * score:.4g}" for policy, score in point.scores.items()}
    scores = [known.get(policy, "-") for policy in policies]
    return [f"{100 * point.macs:.1f} %", _words(str(point.reduction)), *scores]


def _column(policy: str) -> str:
    return "unmerged" if policy == "none" else _words(policy)


def _recipe(recipe: Recipe | None) -> Iterator[str]:
    known = (
        {}
        if recipe is None
        else {name: value for name, value in vars(recipe).items() if value not in (None, {})}
    )
    if known:
        yield "## Recipe\n\n" + "\n".join(f"* {name}: {_code(str(value))}" for name, value in known.items())


def _checked(base: Base) -> str:
    return (
        f"## Base model\n\n* architecture {_code(base.architecture)}, {base.depth} blocks of {base.width} "
        f"channels\n* digest of its blocks {_code(base.digest)}\n\nLoading compares both. A model that was "
        "fine-tuned from the base is taken with `check_base=False`."
    )


def _made_with(versions: dict[str, str]) -> Iterator[str]:
    if versions:
        yield (
            "Made with "
            + ", ".join(f"{_words(name)} {_words(text)}" for name, text in versions.items())
            + "."
        )


def _words(text: str) -> str:
    """One line of text that is no markup."""
    return "".join(f"\\{char}" if char in "\\`*_[]<>|#&" else char for char in printable(text))


def _text(text: str) -> str:
    """A string of Python."""
    return f'"{_plain(text)}"'


def _code(text: str) -> str:
    return f"`{_plain(text)}`"


def _plain(text: str) -> str:
    """One line of text without what would end a span or a string of code."""
    return "".join(char for char in printable(text) if char not in '`"\\')
