"""Reading of what `torch.save` wrote, without the classes that it names.

Files of training scripts hold more than tensors: arguments, histories, settings. torch's restricted reader
(`weights_only=True`) looks each name of a class or function up in a table, and refuses those that it does not
know. Here the table leads every such name to a placeholder that keeps nothing: no package that a file names
is imported, and no code of it runs.
"""

import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from pipeline.errors import CheckpointError

MOST_NAMES = 64
"""Most names that torch does not know in a file; a training script's has about ten."""
NO_FILE = (RuntimeError, OSError, EOFError, ValueError)
"""What torch.load raises for what `torch.save` has not written."""
_UNKNOWN = re.compile(r"GLOBAL ([\w.]+) was not an allowed global")
_REFUSED = re.compile(r"GLOBAL ([\w.]+)")
_REASON = re.compile(r"WeightsUnpickler error:\s*(.+)")
_FILLED = re.compile(r"Can only (SETITEM|append|extend)\b.*'placeholder\.([\w.]+)'", re.DOTALL)


class Placeholder:
    """Stands for an object of another class than torch's."""

    def __new__(cls, *arguments: object, **named: object) -> Any:
        return object.__new__(cls)

    def __init__(self, *arguments: object, **named: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _Table(Placeholder):
    """Stands for a dict of a class of its own."""

    def __new__(cls, *arguments: object, **named: object) -> Any:
        return OrderedDict()


class _Row(Placeholder):
    """Stands for a list of a class of its own."""

    def __new__(cls, *arguments: object, **named: object) -> Any:
        return []


def read_pickled(path: Path) -> Any:
    """What the file holds: tensors, numbers, texts, lists, dicts, and Placeholders for all else. Raises
    CheckpointError for a file that has to be run to be read, and NO_FILE for one that is none of torch's."""
    kinds: dict[str, type[Placeholder]] = dict.fromkeys(_names_in(path), Placeholder)
    while True:
        try:
            with safe_globals([(_called(name, kind), name) for name, kind in kinds.items()]):
                return torch.load(path, map_location="cpu", weights_only=True)
        except NO_FILE:
            raise
        # the unpickler's own error class is in pickle, which this project does not import
        except Exception as err:
            change = _change(str(err), kinds)
            if change.items() <= kinds.items() or len(kinds | change) > MOST_NAMES:
                raise _refusal(path, err) from err
            kinds |= change


def _names_in(path: Path) -> list[str]:
    """Names that torch does not know; empty for a file of before torch 1.6, which has no list of them."""
    try:
        names = get_unsafe_globals_in_checkpoint(path)
    except NO_FILE:
        return []
    except Exception as err:
        raise _refusal(path, err) from err
    if len(names) > MOST_NAMES:
        raise CheckpointError(f"{path} names {len(names)} classes and functions; is it a file of weights?")
    return names


def _called(name: str, kind: type[Placeholder]) -> type[Placeholder]:
    """The kind as a class of this name, which the reader's messages then have."""
    return type(kind.__name__, (kind,), {"__module__": "placeholder", "__qualname__": name})


def _change(message: str, kinds: dict[str, type[Placeholder]]) -> dict[str, type[Placeholder]]:
    """What has to stand for a name by a message of the reader; empty where nothing can."""
    if found := _UNKNOWN.search(message):
        name = found[1] if "." in found[1] else f"builtins.{found[1]}"
        return {} if name in kinds else {name: Placeholder}
    if (found := _FILLED.search(message)) and kinds.get(found[2]) is Placeholder:
        return {found[2]: _Table if found[1] == "SETITEM" else _Row}
    return {}


def _refusal(path: Path, err: Exception) -> CheckpointError:
    named, reason = _REFUSED.search(str(err)), _REASON.search(str(err))
    what = f"it names {named[1]}" if named else f"{reason[1] if reason else type(err).__name__:.120}"
    return CheckpointError(
        f"{path} cannot be read without running what is in it ({what}); save the tensors alone where it was "
        "made: torch.save(model.state_dict(), FILE)"
    )
