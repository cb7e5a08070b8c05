"""The engine of DeepSpeed, ZeRO stages 0 to 3. No other file imports the package."""

import atexit
import fcntl
import gc
import os
import socket
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipeline.config.schema import RunConfig
from pipeline.engine import launched
from pipeline.engine.connect import START, connect
from pipeline.engine.exchange import Piece, buckets, collect, fill, on_host
from pipeline.engine.model_on_device import ModelOnDevice
from pipeline.engine.optimizer import mark_nonfinite
from pipeline.engine.optimizers import build_optimizer
from pipeline.engine.zero_config import zero_config
from pipeline.engine.zero_state import STATE_OF_STAGE
from pipeline.errors import ConfigError
from pipeline.extras import extra
from pipeline.interfaces import Batch, StepSpec, TaskOutput
from pipeline.model import MultiTaskModel
from pipeline.parts import trained_parameters

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


class ZeroEngine(ModelOnDevice[MultiTaskModel]):
    """An `Engine` over DeepSpeed's. All ranks skip a step whose gradient norm is not finite.

    At stages 1 to 3 DeepSpeed itself skips it, and reads the norm from the device in every step.
    """

    trains = True

    def __init__(
        self, config: RunConfig, model: MultiTaskModel, parameter_groups: Sequence[Mapping[str, Any]]
    ):
        settings = zero_config(config)
        deepspeed = start_deepspeed(config.engine.start_timeout)
        super().__init__(model, config.engine.precision)
        self._clip, self._stage = config.optim.clip_grad, config.engine.zero_stage
        self._params = [parameter for group in parameter_groups for parameter in group["params"]]
        self._optimizer = build_optimizer(config.optim, parameter_groups)
        self.forward_is_collective = self._stage == 3
        groups = {
            id(parameter): i for i, group in enumerate(parameter_groups) for parameter in group["params"]
        }
        try:
            self._deepspeed, *_ = deepspeed.initialize(
                model=self.module, optimizer=self._optimizer, config=settings
            )
        except (ValueError, TypeError, AssertionError, KeyError) as err:
            if not config.engine.deepspeed:
                raise
            raise ConfigError(
                f"DeepSpeed does not take the settings with those of engine.deepspeed: {err}"
            ) from err
        # only CPUs have gloo's threads, and there `destroy` waits for no device
        if not launched.cuda():
            atexit.register(_destroy, weakref.ref(self._deepspeed))
        self._state = STATE_OF_STAGE[self._stage](
            self._deepspeed.optimizer, self._optimizer, groups, deepspeed.zero.GatheredParameters
        )

    def forward(self, batch: Batch, spec: StepSpec) -> TaskOutput:
        return self._deepspeed(batch, spec)

    def backward(self, loss: Tensor, *, last: bool, retain: bool = False) -> None:
        self._deepspeed.set_gradient_accumulation_boundary(last)
        with self._state.backward(self.module):
            self._deepspeed.backward(mark_nonfinite(loss), retain_graph=retain)

    def step(self, lrs: Mapping[str, float]) -> Tensor:
        self._optimizer.set_lrs(lrs)
        norm = self._clip_reduced_gradients() if self._stage == 0 else None
        self._deepspeed.step()
        self._state.forget_gradients()
        return (
            torch.as_tensor(self._deepspeed.get_global_grad_norm(), device=self.device)
            if norm is None
            else norm
        )

    @torch.no_grad()
    def copied_state(self) -> Callable[[], dict[str, Tensor]]:
        tensors = self._weights_on_rank_0()
        trained = trained_parameters(self.module)
        counted = self._state.keeps("step", trained)
        counts = {f"step.{name}": self._state.step_count(each) for name, each in counted.items()}
        tensors |= self._on_rank_0(counts)
        shapes = {name: shape_of(parameter) for name, parameter in trained.items()}
        divided: dict[str, Callable[[], dict[str, Tensor]]] = {}
        for key in self._optimizer.moments:
            pieces = self._pieces(key, trained)
            if self._state.divided:
                divided[key] = collect(self, pieces, shapes)
            else:
                tensors |= self._on_rank_0(
                    {f"{key}.{name}": piece.tensor.view(shapes[name]) for name, piece in pieces.items()}
                )
        return lambda: (
            tensors
            | {
                f"{key}.{name}": tensor
                for key, wholes in divided.items()
                for name, tensor in wholes().items()
            }
        )

    def state_tensors(self) -> dict[str, Tensor]:
        return self.copied_state()()

    @torch.no_grad()
    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        trained = trained_parameters(self.module)
        self._load_weights({name: tensors[f"model.{name}"] for name, _ in self._weights()})
        for parameter in trained.values():
            self._state.weights_changed(parameter)
        for key in self._optimizer.moments:
            pieces = self._pieces(key, trained)
            if self._state.divided:
                for name, piece in pieces.items():
                    piece.load(tensors[f"{key}.{name}"])
            else:
                targets = {f"{key}.{name}": piece.tensor for name, piece in pieces.items()}
                fill(self, targets, tensors)
        for name, parameter in self._state.keeps("step", trained).items():
            self._state.step_count(parameter).copy_(tensors[f"step.{name}"])

    def _pieces(self, key: str, trained: Mapping[str, nn.Parameter]) -> dict[str, Piece]:
        """What this rank holds of a moment, of each parameter that has it."""
        parameters = self._state.keeps(key, trained)
        return {name: self._state.moment(parameter, key) for name, parameter in parameters.items()}

    def _weights_on_rank_0(self) -> dict[str, Tensor]:
        """`model.NAME` -> parameters and buffers, on the CPU of rank 0. A collective."""
        found: dict[str, Tensor] = {}
        for bucket in self._buckets():
            with self._state.whole(list(bucket.values())):
                found |= self._on_rank_0({f"model.{name}": tensor for name, tensor in bucket.items()})
        return found

    def _load_weights(self, values: Mapping[str, Tensor]) -> None:
        """Copies the values, which rank 0 alone reads, into the module on every rank."""
        if not self.forward_is_collective:
            fill(self, dict(self._weights()), values)
            return
        for bucket in self._buckets():
            with self._state.whole(list(bucket.values()), written=True):
                if self.rank == 0:
                    for name, tensor in bucket.items():
                        tensor.copy_(values[name])
        fill(self, {name: each for name, each in self._weights() if not hasattr(each, "ds_id")}, values)

    def _clip_reduced_gradients(self) -> Tensor:
        """Norm of the gradients, clipped as the local engine does. For stage 0, after the sum over ranks. A
        parameter that no rank used gets a gradient of 0."""
        for parameter in self._params:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return self._optimizer.clip(self._params, self._clip)

    def _on_rank_0(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return on_host(tensors) if self.rank == 0 else {}

    def _buckets(self) -> Iterator[dict[str, Tensor]]:
        """The weights, as many at a time as an exchange takes."""
        weights = dict(self._weights())
        sizes = {name: (shape_of(weight).numel(), weight.dtype) for name, weight in weights.items()}
        return ({name: weights[name] for name in names} for names in buckets(sizes))

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        """Name and tensor of all parameters and buffers of the module (its state dict has empty ones at stage
        3)."""
        tensors = dict(self.module.named_parameters(remove_duplicate=False)) | dict(
            self.module.named_buffers(remove_duplicate=False)
        )
        return ((name, tensors[name]) for name in self.module.state_dict())


def shape_of(tensor: Tensor) -> torch.Size:
    """The shape of a parameter, also of one that stage 3 has divided."""
    return getattr(tensor, "ds_shape", tensor.shape)


def start_deepspeed(limit: float = START) -> Any:
    """The package, after it has connected the processes within `limit` seconds. Raises ConfigError where it
    is not installed, and ConnectError."""
    if not launched.cuda():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    with_ninja = Path(sys.executable).parent
    os.environ["PATH"] = os.pathsep.join([str(with_ninja), os.environ.get("PATH", "")])
    with extra("deepspeed", "give engine.type='local'"):
        import deepspeed
    deepspeed.utils.logger.setLevel("WARNING")
    if not deepspeed.comm.is_initialized():
        _build_shared_memory_op(deepspeed)
        _describe_single_process()
        connect(limit)
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
        if not launched.cuda():
            _forget_shared_memory()
        atexit.register(_disconnect, deepspeed)
    return deepspeed


def _destroy(engine: "weakref.ref[DeepSpeedEngine]") -> None:
    """Removes the hooks of an engine that still exists; through them its parameters keep it and its group
    alive."""
    if (there := engine()) is not None:
        there.destroy()


def _disconnect(deepspeed: Any) -> None:
    """Ends gloo's threads, which live as long as DeepSpeed's tables and engines refer to their group. A
    thread that frees a tensor while the interpreter ends aborts the process: "terminate called without an
    active exception"."""
    gc.collect()
    deepspeed.comm.destroy_process_group()


def _build_shared_memory_op(deepspeed: Any) -> None:
    """Compiles DeepSpeed's operation for CPUs, once per environment (about a minute).

    torch guards the build by a file, which outlives a killed process and then blocks every later one for
    ever. Here a lock that ends with its process lets one process build at a time, so a file found inside is
    stale.
    """
    builder = deepspeed.accelerator.get_accelerator().create_op_builder("ShareMemCommBuilder")
    if launched.cuda() or builder is None or not builder.is_compatible():
        return
    folder = Path(os.environ["TORCH_EXTENSIONS_DIR"])
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "dtem.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for stale in folder.glob(f"**/{builder.NAME}/lock"):
            stale.unlink()
        builder.load()


def _forget_shared_memory() -> None:
    """Removes this process's file of 67 MB in /dev/shm, which DeepSpeed never removes, and which a later run
    with the same port would take for its own. All ranks have it mapped, so that they lose nothing."""
    torch.distributed.barrier()
    address = "_".join(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))
    Path(
        "/dev/shm", f"deepspeed_allreduce_buffer_{os.getuid()}_{address}_{torch.distributed.get_rank()}"
    ).unlink(missing_ok=True)


def _describe_single_process() -> None:
    """Sets a launcher's environment variables for a process that was started without one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in dict(
        RANK=0, LOCAL_RANK=0, WORLD_SIZE=1, MASTER_ADDR="127.0.0.1", MASTER_PORT=port
    ).items():
        os.environ.setdefault(name, str(value))
