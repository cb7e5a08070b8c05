"""The rows of the table of claims that `benchmarks/gpu.sh` measures, the most important ones first: where the
time runs out, the last ones are left out."""

from peer_paths import PEERS
from rows import Row

ALL_PEERS = tuple(PEERS)
TINY = "--device cpu --threads 1 --batches 1 --repeats 1"
TINY_MODEL = f"{TINY} --model deit_tiny_patch16_224"
TINY_WAYS = f"{TINY_MODEL} --ways eager"
TINY_ENCODER = f"{TINY_MODEL} --size 96 --within 0.5"
BF16 = "--precision bf16"
BASE, LARGE = "--model deit_base_patch16_224", "--model vit_large_patch16_224 --r 8"


def _on_gpu(
    script: str,
    arguments: str,
    short: str,
    limit: float,
    peers: tuple[str, ...] = (),
    *,
    name: str = "",
    package: str = "",
) -> Row:
    """short: the row as a trial on a CPU. package: that a machine may lack."""
    needs = ("cuda", f"package {package}") if package else ("cuda",)
    return Row(
        f"gpu_{script.removeprefix('gpu_')}{name}",
        f"{script}.py",
        f"--device cuda {arguments}",
        short,
        needs,
        peers,
        "gpu",
        limit,
    )


def _inference(name: str, arguments: str, limit: float, peers: tuple[str, ...] = ()) -> Row:
    return _on_gpu("inference", f"{BF16} --weights {arguments}", TINY_WAYS, limit, peers, name=name)


GPU = (
    _on_gpu("gpu_checks", "", TINY_MODEL, 60),
    _inference("", "--ways eager,graphs --batches 1,64,128,256 --budget 3", 65, ALL_PEERS),
    _inference("_large", f"{LARGE} --policies dtem --batches 64,128,256 --budget 3", 70, ALL_PEERS),
    _inference("_base", f"{BASE} --policies dtem --batches 64,128,256 --budget 3", 55, ALL_PEERS),
    _on_gpu("training_step", f"{BF16} --batches 128 --budget 4", TINY_MODEL, 60, ("dtem",)),
    _on_gpu("soft_assignment", "--batches 1,128 --budget 3", TINY, 25, ("dtem",)),
    _on_gpu("merge_share", f"{BF16} --ways graphs --batches 1,64,256 --budget 2", TINY_WAYS, 25),
    _inference("_base_graphs", f"{BASE} --policies dtem --ways graphs --batches 1 --budget 3", 25),
    _inference("_large_graphs", f"{LARGE} --policies dtem --ways graphs --batches 1 --budget 3", 35),
    _on_gpu("unmerge", f"{BF16} --batches 1,64 --within 0.5 --budget 2", TINY_ENCODER, 25),
    _on_gpu("segmentation", f"{BF16} --batches 1,64 --within 0.5 --budget 3", TINY_ENCODER, 25),
    _on_gpu("device_decode", "--batches 64 --budget 5", TINY, 30, package="torchvision"),
    _on_gpu(
        "engine_overhead",
        f"{BF16} --batches 128 --repeats 5 --modes backbone modular",
        f"{TINY} --models 'digits ViT' --modes modular",
        45,
    ),
    _inference("_any_r", "--batches 1,256 --r 0,1,2,4,8,13,16 --policies dtem --budget 1", 40),
    _inference("_compiled", "--ways compiled --batches 64 --policies dtem --budget 3", 80),
    _on_gpu(
        "generation",
        f"{BF16} --batches 8,64 --routes direct --budget 5",
        f"{TINY} --length 8 --routes direct",
        30,
        package="open_clip",
    ),
)
SECONDS = 530.0
"""Of all rows together; a row that begins has what is left of them at most."""
