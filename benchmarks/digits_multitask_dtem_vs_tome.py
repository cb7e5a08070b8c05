"""DTEM against ToMe, random merging and its own untrained embedding, at half the encoder's MACs of a model
with three tasks.

Trains configs/digits_multitask.py (two DeepSpeed processes) unless a run of it is given, then its merge
embeddings, which the tasks share, once per seed with all else frozen, then sweeps all policies over the
validation shards. A stopped script continues.

    python benchmarks/digits_multitask_dtem_vs_tome.py --train data/digits --val data/digits \\
        --start runs/digits_multitask/together_seed0
"""

from digits_multitask import CONFIG, METRICS
from stages import add_within, arguments, data_options, modular_stage, record_sweep, train_on_two_cores, trial

MACS = (0.5,)
CLAIM = (
    "three tasks on one frozen ViT (digit scenes): DTEM above ToMe and its untrained embedding in each "
    "task at half the encoder's MACs, "
    "merging in the first {:.0%} of the blocks"
)


def main() -> None:
    parser = arguments(__doc__, "digits_multitask_dtem_vs_tome")
    add_within(parser)
    parser.add_argument("--start", help="a finished run of configs/digits_multitask.py")
    args = parser.parse_args()
    data = data_options(args, *METRICS)
    halves = [*data, *trial(args), *(f"tasks.{task}.data.batch_size=16" for task in METRICS)]
    backbone = args.start or train_on_two_cores(CONFIG, args.work / "backbone", halves)
    runs = modular_stage(args, "configs/digits_multitask_dtem.py", data, backbone)
    record_sweep(
        args, CLAIM.format(args.within), runs, data, MACS, "{} of the encoder's MACs", within=args.within
    )


if __name__ == "__main__":
    main()
