"""A Kubernetes manifest: an indexed Job with a pod for each node, and the headless service by which pods find
the first one. torch's elastic agent runs in each pod, the ranks under it."""

from typing import Any

import yaml

from launch.cluster.backends.backend import BACKENDS, refuse
from launch.cluster.backends.programs import require, submit
from launch.cluster.job import ELASTIC, RANK, Job, elastic_options, module
from pipeline.errors import ConfigError

CONTAINER = "dtem"
SECONDS_TO_SAVE = 120


@BACKENDS.register("k8s")
class Kubernetes:
    """Hands the manifest to kubectl."""

    def text(self, job: Job) -> str:
        return _manifest(job.shown())

    def run(self, job: Job) -> int:
        require("kubectl", "k8s")
        return submit(["kubectl", "create", "-f", "-"], _manifest(job))


def _manifest(job: Job) -> str:
    refuse(job, "k8s", hosts=True, image=False)
    if job.image is None:
        raise ConfigError("--backend k8s needs --image IMAGE, in which this package is installed")
    name = _name(job)
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"clusterIP": "None", "selector": {"job-name": name}, "publishNotReadyAddresses": True},
    }
    work = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "completionMode": "Indexed",
            "completions": job.num_nodes,
            "parallelism": job.num_nodes,
            "backoffLimit": job.restarts * job.num_nodes,
            "podFailurePolicy": {"rules": [_ends_the_job(2)]},
            "template": {"spec": _pod(job)},
        },
    }
    return yaml.safe_dump_all([service, work], sort_keys=False, width=1 << 16)


def _ends_the_job(status: int) -> dict[str, Any]:
    """A user's mistake is not tried again."""
    return {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [status]}}


def _pod(job: Job) -> dict[str, Any]:
    per_node = job.per_node()
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": job.image,
        "workingDir": job.folder,
        "command": [literal(word) for word in _command(job, per_node)],
        "env": [{"name": name, "value": literal(value)} for name, value in job.env.items()],
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }
    container["env"].append({"name": "LOCAL_SIZE", "value": str(per_node)})
    if job.uses_gpus:
        container["resources"] = {"limits": {"nvidia.com/gpu": per_node}}
    volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    for claim, path in job.claims:
        container["volumeMounts"].append({"name": claim, "mountPath": path})
        volumes.append({"name": claim, "persistentVolumeClaim": {"claimName": claim}})
    return {
        "subdomain": _name(job),
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": SECONDS_TO_SAVE,
        "containers": [container],
        "volumes": volumes,
    }


def _command(job: Job, per_node: int) -> tuple[str, ...]:
    name = _name(job)
    options = elastic_options(job, per_node, f"{name}-0.{name}:{job.port}", name)
    return module(job, ELASTIC, *options, "-m", RANK, *job.train)


def _name(job: Job) -> str:
    """Of the job and its service, which no other run of the namespace has."""
    return f"dtem-{job.run_id}"


def literal(text: str) -> str:
    """The text as Kubernetes has to be given it: it replaces `$(NAME)`, and takes `$$` for `$`."""
    return text.replace("$", "$$")
