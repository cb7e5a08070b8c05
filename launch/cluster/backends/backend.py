"""What a way to launch has to say, and the registry of them."""

from typing import Protocol

from launch.cluster.job import Job
from pipeline.errors import ConfigError
from pipeline.registry import Registry


class Backend(Protocol):
    """A way to start the processes of a job."""

    def text(self, job: Job) -> str:
        """What `--dry-run` prints: a command, a script or a manifest. Raises ConfigError."""
        ...

    def run(self, job: Job) -> int:
        """Starts the job; 0 when it is done, or was handed to a scheduler. Raises ConfigError."""
        ...


BACKENDS: Registry[Backend] = Registry("backend")


def refuse(
    job: Job, name: str, *, hosts: bool = False, image: bool = True, own_starter: bool = False
) -> None:
    """Raises ConfigError for options that a backend has no use for. own_starter: it takes names of hosts and
    numbers of processes, and neither GPUs by their numbers nor addresses with ':'."""
    for host in job.hosts if own_starter else ():
        if not host.first_slots:
            raise ConfigError(
                f"--backend {name} takes the first GPUs of a host, not {host.slots} of {host.name}; leave "
                "slots out of --include and --exclude, or give --backend deepspeed"
            )
        if ":" in host.name:
            raise ConfigError(f"--backend {name} takes no IPv6 address as {host.name}; give the host's name")
    if hosts and job.hosts:
        raise ConfigError(f"--backend {name} takes no --hostfile; give --nodes N")
    if image and (job.image or job.claims):
        raise ConfigError(f"--image and --claim are for --backend k8s, not {name}")
