"""Names in a configuration that another package might take for a class, a file or a URL."""

import os
import pickle
from collections.abc import Iterator
from functools import partial
from typing import Any

from payloads import Payload, Sandbox
from payloads.options import plain_run
from payloads.pickles import Call
from pipeline.backbone.build import create_vit, model_facts
from pipeline.backbone.weights.files import read_state_dict
from pipeline.config.load import from_plain
from pipeline.data.samples.protocol import DATASETS
from pipeline.data.samples.text import build_tokenizer
from pipeline.merging.policies import POLICIES
from pipeline.model import TASKS
from pipeline.objectives.objective import OBJECTIVES
from pipeline.plan.resolve import resolve
from pipeline.train.steps.procedure import STEPS
from tasks.mmseg_bridge.heads import build_decode_head, build_neck

DOTTED = [
    "os.system",
    "builtins.eval",
    "canary_module.run",
    "__main__.x",
    "../x",
    "",
    "torch.load",
    "SHELL",
    "PYTHON",
]
REGISTRIES = {"task": TASKS, "schema": DATASETS, "policy": POLICIES, "objective": OBJECTIVES, "step": STEPS}
TIMM = [
    *(
        "hf-hub:canary/model",
        "hf_hub:canary/model",
        "local-dir:FOLDER",
        "https://host/x",
        "../x",
        "resnet50",
        "",
    ),
    *("vit_tiny_patch16_224.canary", "PYTHON", "file:///FOLDER/weights.pth"),
]
TIMM_OPTIONS: list[dict[str, Any]] = [
    *({"checkpoint_path": "FOLDER/weights.pth"}, {"pretrained_cfg": {"file": "FOLDER/weights.pth"}}),
    *({"pretrained_cfg_overlay": {"url": "http://host/x"}}, {"cache_dir": "FOLDER"}, {"scriptable": True}),
    *(
        {"block_fn": "os.system"},
        {"norm_layer": "canary_module.run"},
        {"act_layer": "PYTHON"},
        {"mlp_layer": "SHELL"},
    ),
    *(
        {"embed_layer": "canary_module"},
        {"depth": 10**6},
        {"embed_dim": 2**40},
        {"__class__": 1},
        {"weight_init": "PYTHON"},
    ),
]
MMSEG: list[dict[str, Any]] = [
    *(
        {"type": "os.system"},
        {"type": "canary_module.run"},
        {"type": "torch.load", "f": "FOLDER/weights.pth"},
        {},
    ),
    {
        "type": "FCNHead",
        "channels": 8,
        "init_cfg": {"type": "Pretrained", "checkpoint": "FOLDER/weights.pth"},
    },
    {"type": "FCNHead", "channels": 8, "init_cfg": {"type": "canary_module.run"}},
    {
        "type": "FCNHead",
        "channels": 8,
        "init_cfg": [{"type": "Pretrained", "checkpoint": "http://host/x.pth"}],
    },
    {"type": "FCNHead", "channels": 8, "norm_cfg": {"type": "os.system"}},
    {"type": "FCNHead", "channels": 8, "act_cfg": {"type": "canary_module.run"}},
    {"type": "FCNHead", "channels": 8, "conv_cfg": {"type": "torch.load"}},
    {"type": "FCNHead", "channels": 8, "loss_decode": {"type": "os.system"}},
    {"type": "FCNHead", "channels": 8, "sampler": {"type": "os.system"}},
    {
        "type": "FCNHead",
        "channels": 8,
        "loss_decode": {"type": "CrossEntropyLoss", "class_weight": "FOLDER/weights.pkl"},
    },
    {"type": "FCNHead", "channels": 8, "pretrained": "FOLDER/weights.pth"},
    {"type": "FCNHead", "channels": 8, "_scope_": "canary_module"},
    {"type": "canary_module.FCNHead", "_scope_": "canary_module"},
]
WEIGHTS = [
    *(
        "http://host/x.pth",
        "https://host/x.pth",
        "hf://x/y",
        "s3://b/x.pth",
        "open_clip:x@http://h/x",
        "pipe:SHELL",
    ),
    *(
        "open_clip:PYTHON@x",
        "open_clip:",
        "open_clip:ViT-B-32@../x.pt",
        "open_clip:local-dir:FOLDER@x",
        "FOLDER/weights.pkl",
    ),
    *("/dev/zero", "/dev/stdin", "canary_module:x", "torch://resnet50", "\0"),
]
TOKENIZERS: list[dict[str, Any]] = [
    *(
        {"type": "os.system"},
        {"type": "hf", "name": "canary/x"},
        {"type": "clip", "bpe_path": "FOLDER/weights.pkl"},
        {},
    ),
    *(
        {"type": "words", "words": "abc"},
        {"type": "words", "words": [1]},
        {"type": "words", "words": ["a"], "x": 1},
    ),
    {"type": "clip", "trust_remote_code": True},
]


def cases() -> Iterator[Payload]:
    for kind, registry in REGISTRIES.items():
        for name in DOTTED:
            yield Payload(f"{kind} {name!r}", partial(_register, registry, name))
    for name in TIMM:
        yield Payload(f"timm model {name!r}", partial(_timm, name, {}))
    for options in TIMM_OPTIONS:
        yield Payload(f"timm option {options!r:.60}", partial(_timm, "vit_tiny_patch16_224", options))
    for spec in MMSEG:
        yield Payload(f"mmseg head {spec!r:.90}", partial(_head, spec))
        yield Payload(f"mmseg neck {spec!r:.90}", partial(_neck, spec))
    for where in WEIGHTS:
        yield Payload(f"weights {where!r}", partial(_weights, where))
    for spec in TOKENIZERS:
        yield Payload(f"tokenizer {spec!r:.60}", partial(_tokenizer, spec))
    for registry, name in ((OBJECTIVES, "distill"), (STEPS, "plain"), (POLICIES, "dtem")):
        for options in (
            {"teacher": "FOLDER/weights.pth"},
            {"_target_": "os.system"},
            {"module": "canary_module"},
        ):
            yield Payload(f"{name} with {options!r:.40}", partial(_register, registry, name, **options))
    for name, value in DEEPSPEED.items():
        yield Payload(f"engine.deepspeed.{name} = {value!r:.40}", partial(_resolve, name, value))


DEEPSPEED: dict[str, Any] = {
    "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": "/"}},
    "flops_profiler": {"output_file": "CANARY", "enabled": True},
    "monitor": {"_target_": "os.system", "_args_": ["SHELL"]},
    "checkpoint": {"writer": "os.system"},
}


def _planted(value: Any, sandbox: Sandbox) -> Any:
    """The value with FOLDER and commands filled in; pickles lie where it points."""
    for name in ("weights.pth", "weights.pkl"):
        (sandbox.folder / name).write_bytes(pickle.dumps(Call(os.system, sandbox.shell)))
    if isinstance(value, dict):
        return {key: _planted(item, sandbox) for key, item in value.items()}
    if isinstance(value, list):
        return [_planted(item, sandbox) for item in value]
    return sandbox.fill(value.replace("FOLDER", str(sandbox.folder))) if isinstance(value, str) else value


def _register(registry: Any, name: str, sandbox: Sandbox, **options: str) -> None:
    registry.build(sandbox.fill(name), **_planted(options, sandbox))


def _timm(name: str, options: dict[str, Any], sandbox: Sandbox) -> None:
    name, options = _planted(name, sandbox), _planted(options, sandbox)
    create_vit(name, pretrained=False, timm_options=options)


def _head(spec: dict[str, Any], sandbox: Sandbox) -> None:
    build_decode_head(_planted(spec, sandbox), in_channels=[8], num_classes=3)


def _neck(spec: dict[str, Any], sandbox: Sandbox) -> None:
    build_neck(_planted(spec, sandbox), [8])


def _weights(where: str, sandbox: Sandbox) -> None:
    read_state_dict(_planted(where, sandbox))


def _tokenizer(spec: dict[str, Any], sandbox: Sandbox) -> None:
    build_tokenizer(_planted(spec, sandbox))


def _resolve(name: str, value: Any, sandbox: Sandbox) -> None:
    plain: Any = plain_run(sandbox)
    plain["engine"]["deepspeed"][name] = _planted(value, sandbox)
    config = from_plain(plain)
    resolve(config, 1, model_facts(config.backbone))
