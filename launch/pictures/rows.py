"""The rows of `dtem visualise`: samples of a split, each with the results of all tasks that read it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tqdm import tqdm

from launch.measure.compute import first_grid
from launch.pictures.page import Section
from launch.pictures.section import section_of
from launch.report.words import task_words
from launch.saved.reductions import checked_reduction
from pipeline.config.schema import DataConfig
from pipeline.data.shards.held_out import setting_of
from pipeline.data.stream import EvalLoader, build_eval_loader
from pipeline.drawing.groups import checked_blocks, default_blocks, draw_groups, picture_of
from pipeline.drawing.panels import Drawing, Panel
from pipeline.drawing.sample import draw_sample
from pipeline.errors import ConfigError, SampleError
from pipeline.interfaces import Batch
from pipeline.merging.schedule import ReductionSpec
from pipeline.model import MultiTaskModel


@dataclass(frozen=True)
class Choice:
    """What is drawn. num: the first samples of a split, unless keys name some. reductions: without any,
    each task's own. blocks: counted from 1; None: three, spread over the depth. film: draw the groups after
    every block beside. Raises ConfigError."""

    num: int = 8
    keys: Sequence[str] = ()
    reductions: Sequence[ReductionSpec] = ()
    blocks: Sequence[int] | None = None
    split: str = "val"
    film: bool = False

    def __post_init__(self) -> None:
        if self.num < 1:
            raise ConfigError(f"--num {self.num}: give 1 image or more")


def make_sections(
    model: MultiTaskModel,
    datas: Mapping[str, DataConfig],
    choice: Choice,
    classes: Mapping[str, Sequence[str]] | None = None,
) -> list[Section]:
    """Image, answers and groups of the chosen samples, for each task of `datas`.

    Tasks with the same images share their rows. classes (by task): see build_eval_loader. Raises ConfigError
    for unknown blocks and keys, and for reductions that need more tokens than the first image has, and
    SampleError where no sample can be read.
    """
    depth = model.backbone.depth
    choice = replace(choice, blocks=checked_blocks(choice.blocks or default_blocks(depth), depth))
    one, names = dict(eval_batch_size=1, workers=0), classes or {}
    loaders = {
        task: build_eval_loader(
            task,
            replace(data, **one),
            rank=0,
            world_size=1,
            split=choice.split,
            classes=names.get(task, ()),
        )
        for task, data in datas.items()
    }
    model.check_data(loaders)
    shared = _of_one_source(datas, choice.split)
    painter = _Painter(model, loaders, choice)
    sections = [painter.section(tasks, len(shared) > 1) for tasks in shared]
    for tasks, section in zip(shared, sections, strict=True):
        if not section.rows:
            raise SampleError(
                f"none of the samples of {choice.split} can be read for {', '.join(tasks)}; see `dtem shards "
                "verify`"
            )
    return sections


def _of_one_source(datas: Mapping[str, DataConfig], split: str) -> list[list[str]]:
    """Groups of tasks that have the same images."""
    sources: dict[str, list[str]] = {}
    for task, data in datas.items():
        sources.setdefault(repr((setting_of(data, split)[1], data.img_size)), []).append(task)
    return list(sources.values())


@dataclass
class _Painter:
    model: MultiTaskModel
    loaders: Mapping[str, EvalLoader]
    choice: Choice

    def section(self, tasks: Sequence[str], headed: bool) -> Section:
        heading = ", ".join(map(task_words, tasks)) if headed else ""
        drawn: list[dict[str, Drawing]] = []
        films: list[dict[str, list[Panel]]] = []
        classes = {task: self.loaders[task].classes for task in tasks}
        for batches in self._samples(tasks, heading):
            found = {own.task: draw_batch(self.model, own, self.choice, classes[own.task]) for own in batches}
            drawn.append({task: drawing for task, (drawing, _) in found.items()})
            films.append({task: film for task, (_, film) in found.items()})
        return section_of(drawn, films, classes, self.model.backbone.depth, heading)

    def _samples(self, tasks: Sequence[str], heading: str) -> Iterator[list[Batch]]:
        """The batches of each chosen sample that all of the tasks can read, one for each task."""
        loaders = [self.loaders[task] for task in tasks]
        for loader in loaders if self.choice.keys else ():
            loader.keep(self.choice.keys)
        there, done = min(map(len, loaders)), 0
        most = there if self.choice.keys else min(self.choice.num, there)
        with tqdm(total=most, desc=heading or "images", disable=None, leave=False) as bar:
            for found in zip(*(loader.in_place() for loader in loaders), strict=False):
                if done == most:
                    break
                batches = [batch for own in found for batch in own]
                if len(batches) == len(tasks) and len({batch.keys for batch in batches}) == 1:
                    yield batches
                    done += 1
                    bar.update()


def draw_batch(
    model: MultiTaskModel, batch: Batch, choice: Choice, classes: Sequence[str]
) -> tuple[Drawing, list[Panel]]:
    """What is drawn of a batch of one image, and its film, see `Films`; a clip has none. Raises ConfigError
    for a reduction that needs more tokens than the image has."""
    for reduction in choice.reductions:
        checked_reduction(model, first_grid(model, batch), reduction)
    reductions = choice.reductions or [None]
    drawing = draw_sample(model, batch, reductions=reductions, blocks=choice.blocks, classes=classes)
    if not choice.film or batch.images.ndim > 4:
        return drawing, []
    picture, moved = picture_of(batch.images[0]), batch.to(next(model.parameters()).device)
    every = range(1, model.backbone.depth + 1)
    return drawing, draw_groups(model, batch.task, moved.images[0], picture, reductions, every)
