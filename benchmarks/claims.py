"""The table of claims that are measured on a CPU: one row for each record."""

from gpu_claims import ALL_PEERS, GPU
from rows import WORK, Row

TRIAL = "--seeds 0 --steps 4"


def _shards(name: str, train: int) -> str:
    return f"--train 'data/{name}/train-{{00000..{train - 1:05}}}.tar' --val data/{name}/val-00000.tar"


CIFAR, SCENES, CAMVID = _shards("cifar10", 9), _shards("cifar_scenes", 6), _shards("camvid", 4)
DIGITS = "--train data/digits --val data/digits"
DIGITS_DTEM = (
    f"{DIGITS} --start {WORK}/digits_multitask/together_seed0 --work {WORK}/digits_multitask_dtem_vs_tome"
)
CAMVID_DTEM = f"{CAMVID} --start {WORK}/cifar10_dtem_vs_tome/backbone --work {WORK}/camvid_dtem_vs_tome"
SCENES_DTEM = (
    f"{SCENES} --start {WORK}/cifar10_dtem_vs_tome/backbone --work {WORK}/scenes_captioning_dtem_vs_tome"
)
OF_TASKS = " ".join(
    f"'{task}.train=data/{name}/train-{{00000..{last:05}}}.tar' {task}.val=data/{name}/val-00000.tar"
    for task, name, last in (("scenes_captioning", "cifar_scenes", 5), ("camvid", "camvid", 3))
)
TABLE = (
    Row(
        "scale",
        "scale_sim.py",
        short="--shards 1281 --nodes 1 8 --once 32 --steps 128 --gib 0.1",
    ),
    Row("inference_cpu", "inference.py", short="--repeats 2 --batches 1,4", peers=ALL_PEERS),
    Row(
        "inference_any_r_cpu",
        "inference.py",
        "--batches 1,4 --r 0,1,2,4,8,13,16 --policies dtem",
        "--repeats 2 --batches 1 --r 0,16",
    ),
    Row(
        "inference_bf16_cpu",
        "inference.py",
        "--precision bf16",
        "--repeats 2 --batches 1",
        peers=ALL_PEERS,
    ),
    Row(
        "inference_compiled_cpu",
        "inference.py",
        "--ways compiled --batches 1,4,16 --policies dtem",
        "--ways eager --repeats 2 --batches 1",
    ),
    Row(
        "training_step_cpu",
        "training_step.py",
        short="--repeats 2 --batches 4 --what default,merge_cost",
        peers=("dtem",),
    ),
    Row("soft_assignment_cpu", "soft_assignment.py", short="--repeats 3 --batches 8", peers=("dtem",)),
    Row(
        "policies_vs_peers",
        "policies_vs_peers.py",
        short="--images 1",
        needs=("opentome",),
        peers=("opentome", "gtp", "vid_tldr", "mctf", "stvit", "evit", "as_vit"),
    ),
    Row(
        "labels_vs_peer",
        "labels_vs_peer.py",
        short="--images 2",
        needs=("tl_align", "package torchvision"),
        peers=("tl_align",),
    ),
    Row(
        "lemevit_vs_peer",
        "lemevit_vs_peer.py",
        short="--images 1 --sizes 'LeMeViT-Tiny, 160x160'",
        needs=("lemevit",),
        peers=("lemevit",),
    ),
    Row("one_step_ahead_cpu", "one_step_ahead.py", short="--repeats 2 --batches 1"),
    Row("merge_share_cpu", "merge_share.py", short="--repeats 2 --batches 1"),
    Row("unmerge_cpu", "unmerge.py", short="--repeats 2 --batches 1 --within 0.5"),
    Row(
        "engine_overhead_cpu",
        "engine_overhead.py",
        "--repeats 5",
        "--repeats 3 --models 'digits ViT'",
    ),
    Row("against_commit", "against_commit.py", "38425ea", "--repeats 1"),
    Row("manifest_scale", "manifest_scale.py", short="--shards 10 1000 --repeats 1"),
    Row(
        "streaming",
        "streaming.py",
        short="--pictures 128 --batch 16 --batches 3 --repeats 1",
        needs=("package webdataset", "package torchvision"),
    ),
    Row("segmentation_cpu", "segmentation.py", short="--repeats 2 --batches 1 --within 0.5"),
    Row(
        "beam_search_cpu",
        "generation.py",
        "--threads 1",
        "--repeats 1 --batches 1 --length 8 --routes direct",
        ("package open_clip",),
    ),
    Row(
        "multitask_step_cpu",
        "multitask_step.py",
        "--data data/digits --repeats 60",
        "--repeats 5",
        ("digits",),
    ),
    Row(
        "digits_multitask",
        "digits_multitask.py",
        f"{DIGITS} --work {WORK}/digits_multitask",
        TRIAL,
        ("digits",),
    ),
    Row(
        "multitask_balancings_digits",
        "multitask_balancings.py",
        f"digits_multitask {DIGITS} --work {WORK}/multitask_balancings",
        TRIAL,
        ("digits",),
    ),
    Row(
        "multitask_balancings_cifar",
        "multitask_balancings.py",
        f"cifar_multitask {CIFAR} --work {WORK}/multitask_balancings --shards {OF_TASKS}",
        TRIAL,
        ("cifar10", "cifar_scenes", "camvid"),
    ),
    Row("digits_multitask_dtem_vs_tome", "digits_multitask_dtem_vs_tome.py", DIGITS_DTEM, TRIAL, ("digits",)),
    Row(
        "digits_multitask_dtem_vs_tome_even",
        "digits_multitask_dtem_vs_tome.py",
        f"{DIGITS_DTEM} --within 1",
        TRIAL,
        ("digits",),
    ),
    Row(
        "moving_digits_dtem_vs_tome",
        "moving_digits_dtem_vs_tome.py",
        f"--train data/moving_digits --val data/moving_digits --work {WORK}/moving_digits_dtem_vs_tome",
        TRIAL,
        ("moving_digits",),
    ),
    Row(
        "cifar10_dtem_vs_tome",
        "cifar10_dtem_vs_tome.py",
        f"{CIFAR} --work {WORK}/cifar10_dtem_vs_tome",
        TRIAL,
        ("cifar10",),
    ),
    Row(
        "cifar10_recipes",
        "cifar10_recipes.py",
        f"{CIFAR} --work {WORK}/cifar10_dtem_vs_tome --seeds 0",
        TRIAL,
        ("cifar10",),
    ),
    Row(
        "cifar10_tl_align",
        "cifar10_tl_align.py",
        f"{CIFAR} --work {WORK}/cifar10_tl_align",
        TRIAL,
        ("cifar10",),
    ),
    Row(
        "cifar10_tokenmixup",
        "cifar10_tokenmixup.py",
        f"{CIFAR} --work {WORK}/cifar10_tokenmixup",
        TRIAL,
        ("cifar10",),
    ),
    Row("cifar10_imix", "cifar10_imix.py", f"{CIFAR} --work {WORK}/cifar10_imix", TRIAL, ("cifar10",)),
    Row(
        "cifar10_noisy_labels",
        "cifar10_noisy_labels.py",
        f"{CIFAR} --work {WORK}/cifar10_noisy_labels",
        TRIAL,
        ("cifar10",),
    ),
    Row(
        "cifar10_mctf_vs_tome",
        "cifar10_mctf_vs_tome.py",
        f"{CIFAR} --work {WORK}/cifar10_dtem_vs_tome",
        TRIAL,
        ("cifar10",),
    ),
    Row(
        "rotary_positions",
        "rotary_positions.py",
        f"{CIFAR} --work {WORK}/rotary_positions",
        TRIAL,
        ("cifar10",),
    ),
    Row("camvid_dtem_vs_tome", "camvid_dtem_vs_tome.py", CAMVID_DTEM, TRIAL, ("camvid", "cifar10")),
    Row(
        "camvid_dtem_vs_tome_even",
        "camvid_dtem_vs_tome.py",
        f"{CAMVID_DTEM} --within 1",
        TRIAL,
        ("camvid", "cifar10"),
    ),
    Row(
        "camvid_unmerge",
        "camvid_unmerge.py",
        f"{CAMVID} --work {WORK}/camvid_dtem_vs_tome",
        TRIAL,
        ("camvid", "cifar10"),
    ),
    Row(
        "scenes_captioning_dtem_vs_tome",
        "scenes_captioning_dtem_vs_tome.py",
        SCENES_DTEM,
        TRIAL,
        ("cifar_scenes", "cifar10"),
    ),
    Row(
        "vit_small_saliency_dtem_vs_tome",
        "vit_small_saliency_dtem_vs_tome.py",
        f"--weights data/vit_small_saliency/model.safetensors {CAMVID} "
        f"--work {WORK}/vit_small_saliency_dtem_vs_tome",
        TRIAL,
        ("camvid", "vit_small_saliency"),
    ),
    Row(
        "board_cifar10",
        "board.py",
        f"cifar10 {CIFAR} --work {WORK}/cifar10_dtem_vs_tome",
        TRIAL,
        ("cifar10",),
    ),
    Row("board_camvid", "board.py", f"camvid {CAMVID_DTEM}", TRIAL, ("camvid", "cifar10")),
    Row(
        "board_vit_small_saliency",
        "board.py",
        f"vit_small_saliency --weights data/vit_small_saliency/model.safetensors {CAMVID} "
        f"--work {WORK}/vit_small_saliency_dtem_vs_tome",
        TRIAL,
        ("camvid", "vit_small_saliency"),
    ),
    Row(
        "vit_small_saliency_schedules",
        "vit_small_saliency_schedules.py",
        f"--weights data/vit_small_saliency/model.safetensors {CAMVID} "
        f"--work {WORK}/vit_small_saliency_dtem_vs_tome",
        TRIAL,
        ("camvid", "vit_small_saliency"),
    ),
    Row("crashes", "checkpoint_crashes.py", "--kills 300", "--kills 6", into="reliability"),
    Row(
        "soak",
        "soak.py",
        "--kills 100 --signals 200 --stops 50",
        "--kills 2 --signals 2 --stops 1",
        into="reliability",
    ),
    Row(
        "cache_soak",
        "cache_soak.py",
        short="--processes 4 --reads 400 --shards 40 --kills 5",
        into="reliability",
    ),
    *GPU,
)
MADE = {
    "digits": ["shards", "make", "digit_scenes", "data/digits", "--train", "12000"],
    "moving_digits": [
        "shards",
        "make",
        "moving_digits",
        "data/moving_digits",
        "--train",
        "12000",
        "--val",
        "2000",
    ],
}
"""Sets that `dtem` makes where they are not there yet."""
SHORT_SECONDS = 880.0
"""Of all short runs together; a row that begins has what is left of them at most."""
