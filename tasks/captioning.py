"""Captioning on merged tokens with the parts of open_clip's CoCa. B images, L tokens of a caption, V
vocabulary, E embedding."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.backbone.backbone import Backbone
from pipeline.data.samples.text import build_tokenizer
from pipeline.data.targets import CaptionTargets
from pipeline.errors import ConfigError
from pipeline.interfaces import Batch, Encode, LogProbs, Rows, Scores, Sums, Tallies, Task, TaskOutput
from pipeline.model import TASKS
from pipeline.objectives.contrast import Blend
from pipeline.token_state import BackboneOutput
from tasks.captions.generation import Generation, SpecialTokens, Step, generate
from tasks.captions.image_routes import Direct, Pooler
from tasks.captions.losses import below, caption_loss, contrastive_loss, normalised
from tasks.captions.retrieval import retrieval_rows, retrieval_scores
from tasks.captions.towers import Decoder, ImageTokens, Past, TextTower
from tasks.shared.options import from_options
from tasks.shared.pooling import check_pool

ROUTES = ("pooler", "direct")
LARGEST_SCALE = 100.0
"""Largest scale of the contrastive logits, as in CLIP."""


@TASKS.register("captioning")
class CaptioningTask(Task):
    """A text tower, and a decoder that attends to an image's merged tokens by their sizes.

    model: open_clip's name of a CoCa, or its config as a dict; see
    `tasks.open_clip_bridge.parts.build_parts`. tokenizer: that of the data. route: `pooler`, CoCa's
    attentional pooler between tokens and decoder; or `direct`, as in GIT, where fewer tokens make the decoder
    cheaper. contrastive_weight: 0 leaves out the parts that compare images with captions. generation: options
    of `tasks.captions.generation.Generation`; its lengths are limited by the tokenizer's context. Raises
    ConfigError.
    """

    reads = CaptionTargets
    contrasts = True
    main_metric = "CIDEr"
    metric_units = {"CIDEr": "", "BLEU-4": "%", "words": ""}
    """Units of the metrics in tables. All metrics are shares in [0, 1] except CIDEr, which goes to 10, and
    words, the mean number of words in a caption."""

    def __init__(
        self,
        backbone: Backbone,
        *,
        model: str | Mapping[str, object],
        tokenizer: Mapping[str, Any],
        route: str = "pooler",
        caption_weight: float = 2.0,
        contrastive_weight: float = 1.0,
        label_smoothing: float = 0.0,
        generation: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        if route not in ROUTES:
            raise ConfigError(f"captioning: route is {route!r}; give {' or '.join(ROUTES)}")
        if not (caption_weight > 0 and contrastive_weight >= 0 and 0 <= label_smoothing < 1):
            given = (
                f"caption_weight {caption_weight}, contrastive_weight {contrastive_weight}, "
                f"label_smoothing {label_smoothing}"
            )
            raise ConfigError(
                f"captioning: {given}; give a weight above 0, one from 0, and a number in [0, 1)"
            )
        self.caption_weight, self.contrastive_weight = caption_weight, contrastive_weight
        self.contrasts = contrastive_weight > 0
        self.losses = ("caption_loss", "contrastive_loss") if contrastive_weight else ("caption_loss",)
        self.label_smoothing = label_smoothing
        # raises ConfigError before training where the packages for scores are missing
        _metrics()
        self.tokenizer = build_tokenizer(tokenizer)
        self.special = SpecialTokens(self.tokenizer.pad_id, self.tokenizer.bos_id, self.tokenizer.eos_id)
        self.generation = from_options(Generation, "generation", generation)
        # imported late, as it takes seconds
        from tasks.open_clip_bridge.parts import build_parts

        parts = build_parts(
            model, vocab_size=self.tokenizer.vocab_size, context_length=self.tokenizer.context_length
        )
        self.text = TextTower(parts.text, parts.text.context_length, parts.text.pad_id)
        self.decoder = Decoder(parts.decoder)
        self.route = route
        sizes = (backbone, parts.width, parts.embed_dim)
        part = Pooler(parts.pooler(backbone.embed_dim), *sizes) if route == "pooler" else Direct(*sizes)
        self.add_module(route, part)
        self.logit_scale = nn.Parameter(torch.tensor([math.log(1 / 0.07)])) if contrastive_weight else None
        if not contrastive_weight:
            self.text.drop_feature()
            part.drop_feature()
        elif route == "direct":
            check_pool(backbone.global_pool, backbone.num_prefix)

    def forward(self, output: BackboneOutput, batch: Batch) -> TaskOutput:
        """Loss and predictions: logits [B, L - 1, V] float32 of each token after the first. The batch has
        CaptionTargets, tokens int64 [B, L]. With more than one rank, a collective."""
        image = self.image_tokens(output)
        return self._learned(image, image.feature, batch)

    def contrasted(
        self, output: BackboneOutput, mixed: BackboneOutput, batch: Batch, blend: Blend
    ) -> TaskOutput:
        """`forward`, where captions are compared with images that were mixed. mixed: the output for these."""
        self._compared()
        return self._learned(self.image_tokens(output), self.image_tokens(mixed).feature, batch, blend)

    def _learned(
        self, image: ImageTokens, seen: Tensor | None, batch: Batch, blend: Blend | None = None
    ) -> TaskOutput:
        """seen [B, E]: what is compared with captions; blend: how its images were mixed."""
        tokens = batch.targets.tokens
        labels = tokens[:, 1:]
        words, feature, _ = self.text(tokens, feature=self.contrastive_weight > 0)
        logits = self.decoder(words[:, :-1], image)[0].float()
        losses = {
            "caption_loss": self.caption_weight
            * caption_loss(logits, labels, self.special.pad, self.label_smoothing)
        }
        if feature is not None:
            contrast = contrastive_loss(
                normalised(seen), normalised(feature), self.contrastive_scale(), batch.views, blend
            )
            losses["contrastive_loss"] = self.contrastive_weight * contrast
        loss = torch.stack(list(losses.values())).sum()
        count = len(tokens)
        logs: Sums = {
            name: (value.detach() * count, count) for name, value in ({"loss": loss} | losses).items()
        }
        return TaskOutput(loss, logs, predictions=logits, parts=losses)

    def predictions(self, output: BackboneOutput, batch: Batch) -> Tensor:
        return self._logits(self.image_tokens(output), batch.targets.tokens)

    def _logits(self, image: ImageTokens, tokens: Tensor) -> Tensor:
        """[B, L - 1, V] float32: the logits of each token after the first."""
        return self.decoder(self.text(tokens[:, :-1])[0], image)[0].float()

    def image_tokens(self, output: BackboneOutput) -> ImageTokens:
        """The image tokens to which the decoder attends."""
        return self.get_submodule(self.route)(output.final)

    def image_features(self, output: BackboneOutput) -> Tensor:
        """Image features [B, E] float32, of norm 1. Raises ConfigError without the contrastive part."""
        self._compared()
        return normalised(self.image_tokens(output).feature)

    def text_features(self, tokens: Tensor) -> Tensor:
        """Text features [B, E] float32, of norm 1, of tokens int64 [B, L]. Padding does not change them.
        Raises ConfigError without the contrastive part."""
        self._compared()
        return normalised(self.text(tokens, feature=True)[1])

    def contrastive_scale(self) -> Tensor:
        """Factor of the products of image and text features, a tensor [1]."""
        return below(self._compared(), math.log(LARGEST_SCALE)).exp()

    def _compared(self) -> Tensor:
        """logit_scale [1] (DeepSpeed takes no scalars). Raises ConfigError where there is none."""
        if self.logit_scale is None:
            raise ConfigError(
                "captioning: contrastive_weight is 0, so images and captions have no features to compare"
            )
        return self.logit_scale

    def log_probs(self, output: TaskOutput, batch: Batch) -> LogProbs:
        """Predictions of each token after the first: values [B, L - 1, V]. Tokens after a caption's end do
        not count."""
        words = batch.targets.tokens[:, 1:] != self.special.pad
        return LogProbs(F.log_softmax(output.predictions, dim=-1), words)

    def generate(
        self, output: BackboneOutput, *, keys: Sequence[str] = (), config: Generation | None = None
    ) -> list[str]:
        """A caption of each image. keys: names of the images, which seed their draws under top_p. config:
        None takes the task's."""
        return self._captions(self.image_tokens(output), keys, config or self.generation)

    @torch.no_grad()
    def _captions(self, image: ImageTokens, keys: Sequence[str], config: Generation) -> list[str]:
        longest = min(config.max_length, self.tokenizer.context_length - 1)
        config = replace(config, max_length=longest, min_length=min(config.min_length, longest))
        start = torch.full((len(image.tokens),), self.special.bos, device=image.tokens.device)
        # at ZeRO 3 every call gathers weights over ranks, which must all make the same number of calls
        together = any(parameter.numel() == 0 for parameter in self.parameters())
        words = generate(
            self.next_words(image), start, self.special, config, keys=keys, stop_early=not together
        )
        return [self.tokenizer.decode(row) for row in words.tolist()]

    def infer(self, encode: Encode, batch: Batch) -> list[str]:
        """A caption of each image, by the task's options."""
        return self.generate(encode(batch.images), keys=batch.keys)

    def infer_in_full(self, encode: Encode, batch: Batch) -> list[str]:
        """Captions that all have max_length words, so that the work does not depend on the predictions."""
        whole = replace(self.generation, min_length=self.generation.max_length)
        return self.generate(encode(batch.images), keys=batch.keys, config=whole)

    @torch.no_grad()
    def evaluate(self, encode: Encode, batch: Batch) -> Tallies:
        """Tallies. captions: CaptionRows. loss, tokens: sum of the losses of the first references' tokens,
        and their number. Also features, with the contrastive part."""
        image = self.image_tokens(encode(batch.images))
        tokens, references = batch.targets.tokens, batch.targets.references
        made = self._captions(image, batch.keys, self.generation)
        rows = tuple(_metrics().CaptionRow(*row) for row in zip(batch.keys, made, references, strict=True))
        logits, labels = self._logits(image, tokens), tokens[:, 1:]
        loss = F.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=self.special.pad, reduction="sum"
        )
        tallies = {"captions": Rows(rows), "loss": loss, "tokens": (labels != self.special.pad).sum()}
        if image.feature is None:
            return tallies
        return tallies | retrieval_rows(normalised(image.feature), self, references)

    def scores(self, tallies: Tallies, *, thorough: bool = False) -> Scores:
        """Scores of `tasks.captions.metrics`, the mean loss of a token, and, with the contrastive part,
        scores of `tasks.captions.retrieval`."""
        scores = _metrics().caption_scores(tallies["captions"], thorough=thorough) | {
            "loss": float(tallies["loss"] / tallies["tokens"])
        }
        return scores | retrieval_scores(tallies) if "image" in tallies else scores

    def next_words(self, image: ImageTokens) -> Step:
        """The step of `tasks.captions.generation.generate`: logits of a caption's next word, from its last
        word and the cache of the others."""

        def step(last: Tensor, past: Past | None) -> tuple[Tensor, Past]:
            words, _, of_text = self.text(last[:, None], past.text if past else ())
            logits, of_words, of_image = self.decoder(words, image, past)
            return logits[:, 0], Past(of_text, of_words, of_image)

        return step


def _metrics() -> ModuleType:
    """The module that imports the COCO tools. Raises ConfigError where they are not installed."""
    from tasks.captions import metrics

    return metrics
