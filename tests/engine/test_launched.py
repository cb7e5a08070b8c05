"""What a launcher says of this process, or somebody else left in the environment."""

import pytest
import torch

from launch import cli
from pipeline.engine import launched
from pipeline.errors import ConfigError

WRONG = [
    dict(RANK="²"),
    dict(RANK="-1"),
    dict(RANK="1"),
    dict(RANK="2", WORLD_SIZE="2"),
    dict(WORLD_SIZE="x"),
    dict(WORLD_SIZE="٣"),
    dict(RANK="9" * 5000),
    dict(RANK="0", WORLD_SIZE="1", MASTER_PORT="abc"),
    dict(MASTER_PORT="22;touch x"),
    dict(MASTER_PORT="70000"),
]


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("environment", WRONG, ids=lambda environment: repr(environment)[:40])
def test_a_place_that_makes_no_sense_is_refused(monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="environment variable"):
        launched.rank()


def test_a_run_with_half_a_launcher_says_so_and_makes_nothing(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    options = (
        f"output={tmp_path / 'run'}",
        f"tasks.digits.data.train={digits}",
        f"tasks.digits.data.val={digits}",
    )
    assert cli.main(["train", "--config", "configs/debug_cpu.py", "--cfg-options", *options]) == 2
    assert "RANK is 1, but WORLD_SIZE is not set" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_command_whose_peer_is_lost_says_so_without_a_traceback(monkeypatch, capsys):
    def lose(*_: object):
        raise RuntimeError("[/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:5014")

    monkeypatch.setattr("launch.commands.evaluate.run", lose)
    with pytest.raises(RuntimeError, match="Connection closed"):
        cli.main(["evaluate", "x"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["evaluate", "x"]) == 1
    assert "dtem evaluate: another of the 2 processes has ended" in capsys.readouterr().err


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(launched, "cuda", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="LOCAL_RANK is 2, but 2 GPUs are seen"):
        launched.local_rank()


def test_another_rank_waits_for_rank_0_to_open_the_rendezvous_and_no_longer(monkeypatch):
    assert not launched.rank_0_goes_on(), "nobody said where"
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    assert launched.rank_0_goes_on()


BROKEN_OFF = {
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer "
    "[127.0.0.1]:5014": "Connection closed by peer",
    "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms "
    "for recv": "Timed out waiting",
    "NCCL error in: NCCLUtils.hpp:1\nncclRemoteError: A call failed possibly due to a remote process "
    "exiting": "ncclRemoteError: A call",
    "CUDA out of memory": "",
    "NCCL error in: NCCLUtils.hpp:1\nncclInvalidUsage: This usually reflects invalid usage": "",
}


@pytest.mark.parametrize("text", BROKEN_OFF)
def test_a_lost_peer_is_told_from_an_error_of_ones_own(monkeypatch, text):
    assert not launched.lost_another(RuntimeError(text)), "there is nobody else"
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = launched.lost_another(RuntimeError(text))
    assert BROKEN_OFF[text] in said and bool(said) == bool(BROKEN_OFF[text])
    assert not launched.lost_another(ValueError(text))
