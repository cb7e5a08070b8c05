"""The files of `dtem evaluate --predictions`: each process writes its own part, and rank 0 joins them."""

import hashlib
import heapq
import io
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from PIL import Image
from torch import Tensor

from pipeline.data.targets import CaptionTargets, MaskTargets
from pipeline.errors import ConfigError, SampleError, StorageError
from pipeline.files import refuse_link, replacing
from pipeline.ranks import Ranks
from pipeline.train.collective import agreed, maximum

LONGEST = 200
"""Characters of a file's name, but for its ending."""
_COCO = re.compile(r"(?:COCO_\w+_)?([0-9]{1,15})")


class PredictionFiles:
    """The files of one evaluation. With one task `path` is its file (classes: JSON lines; captions: COCO's
    result file) or folder (masks: a PNG per key); with several, a folder of TASK.jsonl, TASK.json and
    TASK/.

    Nothing is at `path` before `finish`. All processes need a common disk. A collective. Raises ConfigError.
    """

    def __init__(self, path: str | Path, reads: Mapping[str, type], ranks: Ranks):
        self._path, self._reads, self._ranks = Path(path), dict(reads), ranks
        self._stack = ExitStack()
        self._parts = Path(agreed(ranks, self._prepare))
        self._masks = {task: self._parts / f"{number}" for number, task in enumerate(reads)}
        self.sinks = {task: self._sink(task) for task in reads}

    def _prepare(self) -> str:
        refuse_link(self._path)
        folder = len(self._reads) > 1 or MaskTargets in self._reads.values()
        if self._path.exists() and not (
            self._path.is_dir() and not any(self._path.iterdir()) if folder else self._path.is_file()
        ):
            raise ConfigError(
                f"--predictions {self._path} is there already; give "
                + ("an empty or new folder" if folder else "the name of a file")
            )
        parts = self._path.with_name(f".partial-{secrets.token_hex(4)}-{self._path.name}")
        parts.mkdir(parents=True)
        for number, reads in enumerate(self._reads.values()):
            if reads is MaskTargets:
                (parts / f"{number}").mkdir()
        return str(parts)

    def _sink(self, task: str) -> "TaskSink":
        number = list(self._reads).index(task)
        try:
            lines = (self._parts / f"{number}-{self._ranks.rank}.lines").open("x", encoding="utf-8")
        except FileNotFoundError as err:
            raise ConfigError(
                f"{self._parts} is not on the disk of rank {self._ranks.rank}; give --predictions a place "
                "that all machines share"
            ) from err
        return TaskSink(self._stack.enter_context(lines), self._masks[task])

    def finish(self, samples: Mapping[str, int]) -> None:
        """Joins the parts; samples: of each task, over all ranks. A collective. Raises StorageError where a
        part is not there, and SampleError for two samples of one name."""
        self._stack.close()
        maximum(self._ranks, 0)  # by now every rank has closed its part
        agreed(self._ranks, lambda: self._join(samples))

    def _join(self, samples: Mapping[str, int]) -> None:
        for task, wanted in samples.items():
            if (found := sum(1 for _ in self._lines(task))) != wanted:
                raise StorageError(
                    f"{found} of {wanted} predictions of task '{task}' are in {self._parts}: all machines "
                    "have to share its disk"
                )
        if len(self._reads) == 1:
            self._join_task(next(iter(self._reads)), self._path)
        else:
            made = self._parts / "made"
            made.mkdir()
            for task, reads in self._reads.items():
                ending = "" if reads is MaskTargets else ".json" if reads is CaptionTargets else ".jsonl"
                self._join_task(task, made / f"{_file_name(task)}{ending}")
            os.rename(made, self._path)
        self.discard()

    def _join_task(self, task: str, place: Path) -> None:
        if self._reads[task] is MaskTargets:
            os.rename(self._masks[task], place)
            return
        with replacing(place) as part, part.open("w", encoding="utf-8") as out:
            if self._reads[task] is CaptionTargets:
                _write_results(self._lines(task), out)
            else:
                out.writelines(json.dumps(facts) + "\n" for facts in self._lines(task))

    def _lines(self, task: str) -> Iterator[dict[str, Any]]:
        """The lines of all ranks, in the order of the samples."""
        number = list(self._reads).index(task)
        with ExitStack() as stack:
            parts = [
                stack.enter_context((self._parts / f"{number}-{rank}.lines").open(encoding="utf-8"))
                for rank in range(self._ranks.world_size)
            ]
            for line in heapq.merge(*parts, key=_batch_of):
                yield json.loads(line.partition("\t")[2])

    def discard(self) -> None:
        """Removes the parts."""
        self._stack.close()
        shutil.rmtree(self._parts, ignore_errors=True)


class TaskSink:
    """See `Sink`."""

    def __init__(self, lines: IO[str], masks: Path):
        self._lines, self._masks = lines, masks

    def add_line(self, batch: int, facts: Mapping[str, Any]) -> None:
        self._lines.write(f"{batch}\t{json.dumps(facts)}\n")

    def add_mask(self, key: str, labels: Tensor) -> None:
        """Raises SampleError where another sample has the same key."""
        out = io.BytesIO()
        Image.fromarray(labels.cpu().numpy()).save(out, "PNG")
        try:
            with (self._masks / f"{_file_name(key)}.png").open("xb") as file:
                file.write(out.getvalue())
        except FileExistsError as err:
            raise SampleError(
                f"two samples have the key {key!r}, so their masks would be one file; "
                "evaluate shards with other keys one by one"
            ) from err


def _write_results(lines: Iterator[dict[str, Any]], out: IO[str]) -> None:
    """COCO's result file: a list of {"image_id", "caption"}. The id is the number in COCO's names, else the
    key."""
    seen: set[int | str] = set()
    out.write("[")
    for facts in lines:
        match = _COCO.fullmatch(facts["key"])
        image: int | str = int(match[1]) if match else facts["key"]
        if image in seen:
            raise SampleError(f"two samples have the image_id {image!r} in COCO's result file")
        out.write((",\n" if seen else "\n") + json.dumps({"image_id": image, "caption": facts["caption"]}))
        seen.add(image)
    out.write("\n]\n")


def _file_name(key: str) -> str:
    """A key as a name of a file, another one for each key, which leads nowhere else."""
    name = quote(key, safe=" ,=+@()")
    if len(name) <= LONGEST:
        return name
    return f"{name[: LONGEST - 17]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def _batch_of(line: str) -> int:
    """The number of the batch of a line of a part, which stands before its JSON."""
    return int(line.partition("\t")[0])
