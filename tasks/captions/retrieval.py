"""Retrieval of captions by images and of images by captions, and classification by captions of the classes.

N images, T captions, E embedding, K classes. Features are of norm 1.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from pipeline.data.samples.text import Tokenizer
from pipeline.data.targets import ClassificationTargets
from pipeline.errors import ConfigError
from pipeline.interfaces import Batch, Encode, Rows, Scores, Tallies, Task
from pipeline.objectives.contrast import products
from pipeline.token_state import BackboneOutput
from tasks.captions.losses import normalised
from tasks.shared.hits import count_hits, hit_shares

RANKS = (1, 5, 10)
CHUNK = 1024
"""Rows of the table of all images by all captions that are in memory at a time."""


class Captioner(Protocol):
    """The methods of `tasks.captioning.CaptioningTask` that compare features; they are described there."""

    tokenizer: Tokenizer
    taps: tuple[int, ...]
    unmerge: str | None

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def image_features(self, output: BackboneOutput) -> Tensor: ...

    def text_features(self, tokens: Tensor) -> Tensor: ...

    def contrastive_scale(self) -> Tensor: ...


def text_features(captioner: Captioner, texts: Sequence[str]) -> Tensor:
    """Features [T, E] float32 of T texts, of norm 1."""
    tokenizer = captioner.tokenizer
    tokens = [torch.tensor(tokenizer.encode(text)) for text in texts]
    padded = pad_sequence(tokens, batch_first=True, padding_value=tokenizer.pad_id)
    return captioner.text_features(padded.to(next(captioner.parameters()).device))


def retrieval_rows(image: Tensor, captioner: Captioner, references: Sequence[Sequence[str]]) -> Tallies:
    """The rows from which `retrieval_scores` computes. image [B, E]: features; references: the captions of
    each image."""
    text = text_features(captioner, [caption for captions in references for caption in captions])
    captions = torch.tensor(list(map(len, references)), device=image.device)
    return {"image": Rows(image), "text": Rows(text), "captions_of_image": Rows(captions)}


def retrieval_scores(tallies: Tallies) -> Scores:
    """See `recalls`."""
    return recalls(tallies["image"], tallies["text"], tallies["captions_of_image"])


def recalls(image: Tensor, text: Tensor, captions: Tensor) -> Scores:
    """image_to_text_R@k: the fraction of images with one of their captions among the k nearest captions;
    text_to_image_R@k: the fraction of captions with their image among the k nearest images.

    image [N, E]; text [T, E], the captions of an image side by side; captions [N] int64: number of captions
    of each image. Of two that are equally near, the wrong one counts as nearer.
    """
    images = torch.arange(len(image))
    owners = images.repeat_interleave(captions)
    sides = {"image_to_text": (image, text, images, owners), "text_to_image": (text, image, owners, images)}
    nearer = {side: torch.cat(list(_wrong_before(*pair))) for side, pair in sides.items()}
    return {
        f"{side}_R@{k}": float((wrong < k).double().mean()) for side, wrong in nearer.items() for k in RANKS
    }


def _wrong_before(
    queries: Tensor, items: Tensor, image_of_query: Tensor, image_of_item: Tensor
) -> Iterator[Tensor]:
    """Yields, for a chunk of queries, the number of items of other images that are nearer than the first item
    of the query's own image."""
    for rows, images in zip(queries.split(CHUNK), image_of_query.split(CHUNK), strict=True):
        near, own = rows @ items.mT, images[:, None] == image_of_item
        best = near.masked_fill(~own, -torch.inf).amax(dim=1, keepdim=True)
        # a NaN is wrong
        yield (~(near < best) & ~own).sum(dim=1)


def class_features(
    text_features: Callable[[Sequence[str]], Tensor], classes: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """[K, E]: the mean direction of the captions of each class, which are the templates with its name for {}.
    Raises ConfigError for a template without exactly one {}."""
    if wrong := [template for template in templates if template.count("{}") != 1]:
        raise ConfigError(
            f"template {wrong[0]!r} does not have one place {{}} for the name of a class, as 'a photo "
            f"of a {{}}.' has"
        )
    captions_of = (
        [template.replace("{}", name.replace("_", " ")) for template in templates] for name in classes
    )
    return normalised(torch.stack([text_features(captions).mean(dim=0) for captions in captions_of]))


class ZeroShotTask(Task):
    """Classification without a trained head: the class whose captions are nearest to the image."""

    reads = ClassificationTargets
    main_metric = "top1"
    metric_units = {"top1": "%", "top5": "%"}

    @torch.no_grad()
    def __init__(self, captioner: Captioner, classes: Sequence[str], templates: Sequence[str]):
        """Raises ConfigError for templates without a place for a name, and for a captioner without
        features."""
        super().__init__()
        self.captioner, self.taps, self.unmerge = captioner, captioner.taps, captioner.unmerge
        self.register_buffer("classes", class_features(partial(text_features, captioner), classes, templates))

    def check_classes(self, classes: Sequence[str]) -> None:
        """Raises ConfigError where the data does not have the classes that were named."""
        if (named := len(self.get_buffer("classes"))) != len(classes):
            raise ConfigError(f"the shards have {len(classes)} classes, and {named} have a name")

    def infer(self, encode: Encode, batch: Batch) -> Tensor:
        """Logits [B, K]."""
        image = self.captioner.image_features(encode(batch.images))
        return self.captioner.contrastive_scale() * products(image, self.get_buffer("classes"))

    def tally(self, predictions: Tensor, batch: Batch) -> Tallies:
        """See `count_hits`. predictions: logits [B, K]."""
        return count_hits(predictions, batch.targets.labels)

    def scores(self, tallies: Tallies, *, thorough: bool = False) -> Scores:
        """See `hit_shares`."""
        return hit_shares(tallies)
