"""Run by `deepspeed` in every rank: the same short runs at every ZeRO stage. Rank 0 writes curves and states for the test to read."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

sys.path[:0] = [str(Path(__file__).parents[i]) for i in (2, 1)]  # the launcher puts only this folder on the path
from standin import StandinModel, standin_batch, standin_config  # noqa: E402

from pipeline.engine import build_engine  # noqa: E402
from pipeline.train.optim import GradientGate, learning_rates, parameter_groups, phase_at, set_trainable  # noqa: E402

STEPS, GLOBAL_BATCH = 6, 16
RUNS = {"joint": {}, "modular": {"mode": "modular"}, "end_to_end": {"mode": "end_to_end", "alternate_period": 2}, "two_tasks": {}}


def make(kind: str, stage: int, engine_type: str = "deepspeed", precision: str = "fp32", accumulation: int = 2):
    torch.manual_seed(1)
    engine = {"type": engine_type, "zero_stage": stage, "precision": precision, "accumulation": accumulation}
    config = standin_config(train=RUNS[kind], engine=engine)
    model = StandinModel()
    set_trainable(model, config.train.mode)
    groups = parameter_groups(model, config)
    return build_engine(config, model, groups), groups, config


def run(kind: str, engine, groups, config, first: int, last: int, nan_at: tuple[int, int] | None = None) -> list[list[float]]:
    """[loss over the global batch, gradient norm] of steps first ... last - 1; at nan_at = (step, rank) one rank's loss is NaN."""
    gate = GradientGate(groups, engine.device)
    size = GLOBAL_BATCH // config.engine.accumulation // engine.world_size
    curve = []
    for step in range(first, last):
        phase = phase_at(step, config.train)
        gate.open(phase.trained)
        total = torch.zeros(())
        for micro in range(config.engine.accumulation):
            position = step * GLOBAL_BATCH + (micro * engine.world_size + engine.rank) * size
            task = "ab"[(step + micro) % 3 == 2] if kind == "two_tasks" else "a"
            loss = engine.forward(standin_batch(position, size, task), relaxed=phase.relaxed is not False).loss
            total += loss.detach() / config.engine.accumulation
            engine.backward(loss * float("nan") if nan_at == (step, engine.rank) else loss)
            norm = engine.step(learning_rates(groups, step, config, STEPS))
        curve.append([float(engine.all_reduce(total)) / engine.world_size, float(norm)])
    return curve


def main(folder: Path) -> None:
    results = {}
    for stage in range(4):
        for kind in RUNS:
            parts = make(kind, stage)
            results[f"{kind}.{stage}"] = run(kind, *parts, 0, STEPS)
            states = parts[0].state_tensors()
            if parts[0].rank == 0:
                save_file(states, folder / f"{kind}.{stage}.safetensors")
        parts = make("joint", stage)
        parts[0].load_state_tensors(load_file(folder / "local.safetensors"))
        results[f"continued.{stage}"] = run("joint", *parts, 3, STEPS)
        results[f"nan.{stage}"] = run("joint", *make("joint", stage), 0, STEPS, nan_at=(2, parts[0].world_size - 1))
        results[f"bf16.{stage}"] = run("joint", *make("joint", stage, precision="bf16"), 0, STEPS)
    if parts[0].rank == 0:
        (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[-1]))
