"""A script for Slurm's sbatch: one task on each node, torch's elastic agent in it, the ranks under that."""

import shlex

from launch.cluster.backends.backend import BACKENDS, refuse
from launch.cluster.backends.programs import require, submit
from launch.cluster.job import ELASTIC, RANK, Job, elastic_options, module

SECONDS_TO_SAVE = 120
HEAD, PORT, ID = "$DTEM_HEAD", "$((20000 + SLURM_JOB_ID % 10000))", "dtem-$SLURM_JOB_ID"
"""What the shell fills in. Two jobs may have one head node: neither port nor id is the other's."""


@BACKENDS.register("slurm")
class Slurm:
    """Hands the script to sbatch. With a hostfile it asks for those nodes."""

    def text(self, job: Job) -> str:
        return _script(job.shown())

    def run(self, job: Job) -> int:
        require("sbatch", "slurm")
        return submit(["sbatch"], _script(job))


def _script(job: Job) -> str:
    refuse(job, "slurm", own_starter=True)
    per_node = job.per_node()
    nodes = [f"--nodelist={','.join(host.name for host in job.hosts)}"] if job.hosts else []
    gpus = [f"--gpus-per-node={per_node}"] if job.uses_gpus else []
    options = [
        "--job-name=dtem",
        f"--nodes={job.num_nodes}",
        *nodes,
        "--ntasks-per-node=1",
        *gpus,
        f"--signal=USR1@{SECONDS_TO_SAVE}",
        "--open-mode=append",
        "--export=NONE",
    ]
    env = {**job.env, "LOCAL_SIZE": str(per_node)}
    words = [_word(word) for word in _command(job, per_node)]
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {option}" for option in options),
            "set -euo pipefail",
            f"cd {shlex.quote(job.folder)}",
            *(f"export {name}={shlex.quote(value)}" for name, value in env.items()),
            'DTEM_HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            " ".join(["exec srun --export=ALL --kill-on-bad-exit=1", *words]),
            "",
        ]
    )


def _command(job: Job, per_node: int) -> tuple[str, ...]:
    options = elastic_options(job, per_node, f"{HEAD}:{job.master_port or PORT}", ID)
    return module(job, ELASTIC, *options, "-m", RANK, *job.train)


def _word(word: str) -> str:
    """Quoted, but for the two options that the shell fills in."""
    ours = word.startswith(f"--rdzv-endpoint={HEAD}:") or word == f"--rdzv-id={ID}"
    return f'"{word}"' if ours else shlex.quote(word)
