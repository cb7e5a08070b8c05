"""Files of tensors are those that safetensors writes, with the hash of what is on the disk."""

import hashlib

import pytest
import torch
from safetensors.torch import load_file, save

from pipeline.train.tensor_file import CHUNK, NAMES, write_tensors


def test_the_bytes_are_those_of_safetensors(tmp_path):
    tensors = {
        "b": torch.randn(3, 5),
        "a.weight": torch.randn(7, 1).T,
        "step": torch.tensor(3.0),
        "none": torch.empty(0, 4),
        "count": torch.arange(4),
    }
    written = write_tensors(tmp_path / "x", tensors)
    content = (tmp_path / "x").read_bytes()
    assert content == save({name: tensor.contiguous() for name, tensor in tensors.items()})
    assert written == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


@pytest.mark.parametrize("dtype", NAMES, ids=str)
def test_every_type_comes_back(tmp_path, dtype):
    tensor = (torch.randn(11, 3) * 9).to(dtype)
    write_tensors(tmp_path / "x", {"odd": torch.ones(3, dtype=torch.uint8), "own": tensor})
    loaded = load_file(tmp_path / "x")
    assert loaded["own"].dtype == dtype and torch.equal(loaded["own"], tensor)


def test_a_tensor_of_several_chunks_is_whole(tmp_path):
    tensors = {"large": torch.arange(2 * CHUNK + 5, dtype=torch.uint8)}
    written = write_tensors(tmp_path / "x", tensors)
    assert hashlib.sha256((tmp_path / "x").read_bytes()).hexdigest() == written["sha256"]
    assert torch.equal(load_file(tmp_path / "x")["large"], tensors["large"])


def test_no_tensors_are_a_file_too(tmp_path):
    write_tensors(tmp_path / "x", {})
    assert load_file(tmp_path / "x") == {}


def test_a_file_that_is_there_is_not_written_over(tmp_path):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(FileExistsError):
        write_tensors(tmp_path / "x", {})
