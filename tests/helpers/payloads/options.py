"""Values of `--cfg-options`, and of the arguments that become settings."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from launch.saved.reductions import parse_reduction
from payloads import Payload, Sandbox
from pipeline.config.load import from_plain, to_plain
from pipeline.config.overrides import parse_value
from pipeline.errors import ConfigError

VALUES = [
    *(
        "PYTHON",
        "`SHELL`",
        "$(SHELL)",
        "SHELL",
        "eval('PYTHON')",
        "exec(PYTHON)",
        "lambda: PYTHON",
        "[PYTHON]",
    ),
    *(
        "{'a': PYTHON}",
        "(PYTHON,)",
        "f'{PYTHON}'",
        "{{PYTHON}}",
        "!!python/name:os.system",
        "__import__('os')",
    ),
    *(
        "().__class__.__base__.__subclasses__()",
        "[x for x in ()]",
        "1 if PYTHON else 2",
        "*CANARY",
        "open('CANARY','w')",
    ),
    *(
        "{[]: 1}",
        "{{}: 1}",
        "{1: {[]: 2}}",
        "9" * 5000,
        "1e999",
        "-1e999",
        "nan",
        "0x" + "f" * 500,
        "1_0" * 300,
    ),
    *(
        "(" * 500,
        "[" * 5000,
        "[" * 100_000 + "]" * 100_000,
        "{" * 3000 + "}" * 3000,
        "-" * 5000 + "1",
        "'" * 999,
    ),
    *(
        "\0",
        "a\0b",
        "\x1b]0;pwn\x07",
        "\ud800",
        "\u202e",
        "b'\\x00'",
        "1+1j",
        "...",
        "NotImplemented",
        "{1, 2}",
    ),
    *(
        "a,b,[c",
        "'a" + "\\" * 501,
        "2**64",
        "9223372036854775808",
        "{'_delete_': PYTHON}",
        "${HOME}",
        "~/x",
        "%(x)s",
    ),
]
"""Each is the value of every field of STRICT and OPEN."""
STRICT, OPEN = ("optim.lr", "train.steps", "seed"), ("merging.options.x", "tasks.digits.head.num_classes")
KEYS = [
    *(
        "",
        "=1",
        "seed",
        ".=1",
        "a..b=1",
        "__class__=1",
        "__class__.__init__.__globals__=1",
        "tasks.__class__=1",
    ),
    *(
        "optim.__dict__={}",
        "PYTHON=1",
        "train.steps.x=1",
        "tasks.digits.data.train.0=x",
        "seed.0=1",
        "tasks.=1",
    ),
    *(
        "tasks.digits.data.augment.\u0661=1",
        "tasks.../x.type=classification",
        "optim.lr.\ud800=1",
        "a" * 3000 + "=1",
    ),
    *("tasks={'_delete_': True}", "tasks={}", "tasks=[]", "backbone=None", "engine.deepspeed={'a': b'x'}"),
]
SIZES = {
    "tasks.digits.data.batch_size": [0, -1, 10**12, 1.5, True],
    "tasks.digits.data.workers": [-1, 10**6],
    "tasks.digits.data.img_size": [0, -64, 2**40, [1, 2, 3]],
    "tasks.digits.data.cache_gib": [-1],
    "engine.threads": [0, 10**6],
    "seed": [-1, 2**70],
    "train.steps": [0, -5],
}
ARGUMENTS = ("PYTHON", "__import__('os')", "{}", "True", "'8'", "[" * 5000, "\0", "8;SHELL", "`SHELL`")


def cases() -> Iterator[Payload]:
    for value in VALUES:
        yield Payload(f"value {value!r:.50}", partial(_value, value), refused=False)
        for field in STRICT:
            yield Payload(f"{field}={value!r:.40}", partial(_options, [f"{field}={value}"]))
        for field in OPEN:
            yield Payload(f"{field}={value!r:.40}", partial(_or_refused, [f"{field}={value}"]), refused=False)
    for key in KEYS:
        yield Payload(f"key {key!r:.50}", partial(_options, [key]))
    for field, sizes in SIZES.items():
        for size in sizes:
            yield Payload(f"{field}={size}", partial(_options, [f"{field}={size}"]))
    for text in ARGUMENTS:
        yield Payload(f"--reduction {text!r:.40}", partial(_reduction, text))


def _value(text: str, sandbox: Sandbox) -> None:
    parse_value(sandbox.fill(text))


def _options(options: list[str], sandbox: Sandbox) -> None:
    from_plain(plain_run(sandbox), [sandbox.fill(option) for option in options])


def _or_refused(options: list[str], sandbox: Sandbox) -> None:
    """An open field takes any plain value as it is."""
    try:
        _options(options, sandbox)
    except ConfigError:
        return


def _reduction(text: str, sandbox: Sandbox) -> None:
    parse_reduction(sandbox.fill(text))


def plain_run(sandbox: Sandbox) -> dict[str, Any]:
    """The settings of the run."""
    import json

    return to_plain(from_plain(json.loads((sandbox.run / "config.json").read_text())))
