"""A launch as a value: what trains, where, and with what environment."""

import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from launch.cluster.hosts import Host
from launch.cluster.work import HostWork
from pipeline.errors import ConfigError
from pipeline.redact import redacted, without_secrets

FIRST_PORT, PORTS = 20000, 10000
"""Where a port is not known to be free: below those that the kernel gives away."""
RANK = "launch.cluster.rank"
ELASTIC = "launch.cluster.elastic"
HERE = "localhost"
"""Name of this machine as the host of a launch without ssh."""
EnvOf = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training run on some hosts. Where a scheduler gives the hosts, `hosts` is empty, and `nodes` says
    how many it is to give."""

    train: tuple[str, ...]
    """Arguments of `dtem train`, with `--resume` at their end."""
    folder: str
    """Working folder, the same path on every host."""
    run_id: str = field(default_factory=lambda: secrets.token_hex(8))
    """16 hexadecimal digits of this launch alone: two launches that meet at one place stay apart."""
    output: str | None = None
    """Of the run; hosts have to have it in common."""
    hosts: tuple[Host, ...] = ()
    nodes: int = 1
    processes: int = 1
    """On each node, where `hosts` is empty."""
    env: Mapping[str, str] = field(default_factory=dict)
    restarts: int = 0
    python: str = sys.executable
    master_addr: str | None = None
    master_port: int | None = None
    image: str | None = None
    """Container image, for Kubernetes."""
    claims: tuple[tuple[str, str], ...] = ()
    """(name of a persistent volume claim, path in the container), for Kubernetes."""

    @property
    def over_a_network(self) -> bool:
        """Whether its hosts are reached by ssh."""
        return any(host.name != HERE or host.user or host.port for host in self.hosts)

    @property
    def uses_gpus(self) -> bool:
        return self.env.get("DS_ACCELERATOR") != "cpu"

    @property
    def num_nodes(self) -> int:
        return len(self.hosts) or self.nodes

    @property
    def address(self) -> str:
        """Where the ranks meet: the first host."""
        return self.master_addr or (self.hosts[0].name if len(self.hosts) > 1 else "127.0.0.1")

    @property
    def port(self) -> int:
        """Where nobody has looked for a free one: one that another launch is not likely to have."""
        return self.master_port or FIRST_PORT + int(self.run_id, 16) % PORTS

    def shown(self) -> "Job":
        """The job as it may be printed: without secrets."""
        return replace(self, train=tuple(map(without_secrets, self.train)), env=redacted(self.env))

    def per_node(self) -> int:
        """Processes on each node. Raises ConfigError where hosts differ, for what starts as many on each."""
        counts = {len(host.slots) for host in self.hosts} or {self.processes}
        if len(counts) > 1:
            raise ConfigError(
                f"hosts have {' and '.join(map(str, sorted(counts)))} slots, and this backend starts as many "
                "processes on each; give --nproc N, or --backend deepspeed"
            )
        return counts.pop()


def rank_by_rank(job: Job, env_of: EnvOf) -> Iterator[HostWork]:
    """Work of each host where every rank is a process of the host's agent. Each gets what torch's and
    DeepSpeed's connection reads.

    env_of: host -> variables of that host alone, for instance its network interface.
    """
    size, first = sum(len(host.slots) for host in job.hosts), 0
    for index, host in enumerate(job.hosts):
        local_size = str(len(host.slots))
        env = host_env(job, host, env_of) | {
            "WORLD_SIZE": str(size),
            "LOCAL_SIZE": local_size,
            "LOCAL_WORLD_SIZE": local_size,
            "CROSS_RANK": str(index),
            "CROSS_SIZE": str(len(job.hosts)),
            "MASTER_ADDR": job.address,
            "MASTER_PORT": str(job.port),
        }
        ranks = {
            f"rank {first + local}": {"RANK": str(first + local), "LOCAL_RANK": str(local)}
            for local in range(len(host.slots))
        }
        first += len(ranks)
        yield HostWork(host.name, job.folder, module(job, RANK, *job.train), env, ranks, job.over_a_network)


def elastic_by_host(job: Job, env_of: EnvOf) -> Iterator[HostWork]:
    """Work of each host where one elastic agent starts its ranks."""
    per_node = job.per_node()
    for index, host in enumerate(job.hosts):
        options = elastic_options(job, per_node, f"{job.address}:{job.port}", f"dtem-{job.run_id}")
        options += [f"--rdzv-conf=is_host={int(index == 0)}"]
        options += [f"--local-addr={host.name}"] if len(job.hosts) > 1 else []
        argv = module(job, ELASTIC, *options, "-m", RANK, *job.train)
        env = host_env(job, host, env_of) | {"LOCAL_SIZE": str(per_node)}
        yield HostWork(host.name, job.folder, argv, env, {"torchrun": {}}, job.over_a_network)


def module(job: Job, name: str, *arguments: str) -> tuple[str, ...]:
    """The argv of a module of ours. -P: nothing of the working folder is taken for a module."""
    return (job.python, "-P", "-u", "-m", name, *arguments)


def elastic_options(job: Job, per_node: int, endpoint: str, run_id: str) -> list[str]:
    """Options of torchrun, but for those of one host. run_id: agents of another one are no part of the run,
    though they come to the same endpoint."""
    return [
        f"--nnodes={job.num_nodes}",
        f"--nproc-per-node={per_node}",
        f"--max-restarts={job.restarts}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={endpoint}",
        f"--rdzv-id={run_id}",
    ]


def host_env(job: Job, host: Host, env_of: EnvOf) -> dict[str, str]:
    """Environment of a host: the job's, the host's own, and its GPUs where they are not its first ones."""
    chosen = {} if host.first_slots else {"CUDA_VISIBLE_DEVICES": ",".join(map(str, host.slots))}
    return {**env_of.get(host.name, {}), **job.env, **chosen}


def continued(train: Sequence[str]) -> tuple[str, ...]:
    """Arguments of a start after the first: what began anew goes on. All else stays: `--resume PATH` goes on
    from what the run has saved since it began at PATH."""
    begins = tuple(train[-2:]) in (("--resume", "none"), ("--resume", "overwrite"))
    return (*train[:-2], "--resume", "auto") if begins else tuple(train)
