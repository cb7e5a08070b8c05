"""Pickles where tensors, images, numbers or JSON belong."""

import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from checkpointkit import forge

from launch.saved.run import read_run
from payloads import Payload, Sandbox, linked, replace
from payloads.tars import member, tar_of
from pipeline.backbone.weights.files import read_state_dict
from pipeline.data.make.existing import index_shards
from pipeline.data.make.verify import verify
from pipeline.data.members.decode import DECODERS
from pipeline.files import sha256_of
from pipeline.train import storage


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable[..., object], *arguments: object):
        self._call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self._call


def _classic(text: str) -> Callable[[Sandbox], bytes]:
    return lambda sandbox: sandbox.fill(text).encode()


PICKLES: dict[str, Callable[[Sandbox], bytes]] = {
    "open": lambda sandbox: pickle.dumps(Call(open, str(sandbox.canary), "w")),
    "system": lambda sandbox: pickle.dumps(Call(os.system, sandbox.shell)),
    "eval": lambda sandbox: pickle.dumps(Call(eval, sandbox.python)),
    "exec": lambda sandbox: pickle.dumps(Call(exec, sandbox.python)),
    "text of protocol 0": _classic("cos\nsystem\n(S'SHELL'\ntR."),
    "instance of protocol 0": _classic("(S'SHELL'\nios\nsystem\n."),
    "module by name": _classic("c__builtin__\n__import__\n(S'canary_module'\ntR."),
    "attribute of an attribute": _classic("cbuiltins\ngetattr\n(cos\npath\nS'os'\ntR."),
    "in a list of protocol 4": lambda sandbox: pickle.dumps([1, {"a": Call(os.system, sandbox.shell)}], 4),
    "under a key of a state dict": lambda sandbox: pickle.dumps(
        {"state_dict": {"a": Call(os.system, sandbox.shell)}}
    ),
}
FILES = ("weights.pth", "weights.pt", "weights.bin", "weights.ckpt", "weights.safetensors")
FORMS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "zip of torch": lambda data: _zip_of_torch(data),
    "tar of old torch": lambda data: tar_of(
        member("pickle", data), member("storages", data), member("tensors", data)
    ),
    "script of torch": lambda data: _zip_of_torch(data, code=True),
}
SUFFIXES = (
    "pyd",
    "pkl",
    "pickle",
    "pth",
    "pt",
    "npy",
    "npz",
    "cls",
    "jpg",
    "png",
    "webp",
    "json",
    "seg.png",
    "txt",
    "ten",
)
CHECKPOINT = ("model", "optimizer", "ema")


def cases() -> Iterator[Payload]:
    for name, make in PICKLES.items():
        for suffix in DECODERS:
            yield Payload(f"{name} as a member {suffix}", partial(_decode, suffix, make))
        for form, wrap in FORMS.items():
            yield Payload(f"{name} as weights, {form}", partial(_weights, FILES[0], make, wrap))
    for file in FILES[1:]:
        yield Payload(f"system as {file}", partial(_weights, file, PICKLES["system"], FORMS["zip of torch"]))
    for file in CHECKPOINT:
        yield Payload(f"pickle as {file} of a checkpoint", partial(_checkpoint, file))
    yield Payload("every suffix of webdataset", _all_members, refused=False)
    yield Payload("weights of torch with a call beside the tensors", _beside_tensors)
    for name in ("open", "eval", "exec"):
        yield Payload(f"{name} beside the tensors", partial(_passed_over, name), refused=False)
    yield Payload("DeepSpeed's states beside a checkpoint", _beside_checkpoint, refused=False)


def _zip_of_torch(data: bytes, *, code: bool = False) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("archive/data.pkl", data)
        file.writestr("archive/version", "3\n")
        file.writestr("archive/byteorder", "little")
        if code:
            file.writestr("archive/constants.pkl", data)
            file.writestr("archive/code/__torch__.py", "import os\nos.system('touch canary')\n")
    return out.getvalue()


def _decode(suffix: str, make: Callable[[Sandbox], bytes], sandbox: Sandbox) -> None:
    DECODERS[suffix](make(sandbox))


def _weights(
    file: str, make: Callable[[Sandbox], bytes], wrap: Callable[[bytes], bytes], sandbox: Sandbox
) -> None:
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # somebody else's habit
    try:
        path = sandbox.folder / file
        path.write_bytes(wrap(make(sandbox)))
        read_state_dict(path)
    finally:
        del os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"]


def _checkpoint(file: str, sandbox: Sandbox) -> None:
    folder = checkpoint_of(sandbox)
    path = replace(folder / f"{file}.safetensors", _zip_of_torch(PICKLES["system"](sandbox)))
    forge(folder / "manifest.json", lambda facts: facts["files"][path.name].update(sha256=sha256_of(path)))
    storage.read_checkpoint(folder)


def checkpoint_of(sandbox: Sandbox) -> Path:
    """The last checkpoint of a copy of the run, see `linked`."""
    return max((linked(sandbox.run, sandbox.folder / "run") / "checkpoints").glob("step_*"))


def _all_members(sandbox: Sandbox) -> None:
    folder = sandbox.folder / "set"
    folder.mkdir()
    data = PICKLES["open"](sandbox)
    (folder / "x.tar").write_bytes(tar_of(*(member(f"a.{suffix}", data) for suffix in SUFFIXES)))
    assert tarfile.is_tarfile(folder / "x.tar")
    index_shards([str(folder / "x.tar")], folder)
    found = verify(str(folder), quick=False)
    assert found.num_samples == 1 and len(found.problems) >= 5


def _beside_tensors(sandbox: Sandbox) -> None:
    torch.save(
        {"state_dict": {"a": torch.zeros(1)}, "args": Call(os.system, sandbox.shell)},
        sandbox.folder / "x.pth",
    )
    read_state_dict(sandbox.folder / "x.pth")


def _passed_over(name: str, sandbox: Sandbox) -> None:
    calls = {
        "open": Call(open, str(sandbox.canary), "w"),
        "eval": Call(eval, sandbox.python),
        "exec": Call(exec, sandbox.python),
    }
    for old in (True, False):
        torch.save(
            {"state_dict": {"a": torch.zeros(1)}, "args": calls[name]},
            sandbox.folder / "x.pth",
            _use_new_zipfile_serialization=not old,
        )
        assert read_state_dict(sandbox.folder / "x.pth") == {"a": torch.zeros(1)}


def _beside_checkpoint(sandbox: Sandbox) -> None:
    folder = checkpoint_of(sandbox)
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt", "extra.pkl"):
        (folder / name).write_bytes(PICKLES["system"](sandbox))
    read_run(sandbox.folder / "run")
