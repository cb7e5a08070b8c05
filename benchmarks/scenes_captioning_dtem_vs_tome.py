"""DTEM against ToMe, random merging and its own untrained embedding in a captioner, at -30 % and -50 % of the
encoder's MACs.

Trains one small captioner of scenes from a CIFAR-10 ViT, or from scratch (two DeepSpeed processes), then its
merge embeddings once per seed with all else frozen, then sweeps all policies over the validation shards. A
stopped script continues.

    python benchmarks/scenes_captioning_dtem_vs_tome.py \\
        --train 'data/cifar_scenes/train-{00000..00005}.tar' --val data/cifar_scenes/val-00000.tar \\
        --start runs/cifar10_dtem_vs_tome/backbone
"""

from stages import add_start, arguments, data_options, modular_stage, record_sweep, train_on_two_cores, trial

MACS = (0.7, 0.5)
CLAIM = (
    "CIDEr and BLEU-4 of a frozen captioner: DTEM at or above ToMe and its untrained embedding at "
    "-30 % and -50 % of the encoder's MACs"
)


def main() -> None:
    parser = arguments(__doc__, "scenes_captioning_dtem_vs_tome")
    add_start(parser)
    args = parser.parse_args()
    data = data_options(args, "scenes_captioning")
    options = [
        *data,
        *trial(args),
        f"backbone.weights={args.start}",
        "tasks.scenes_captioning.data.batch_size=32",
    ]
    backbone = train_on_two_cores("configs/scenes_captioning.py", args.work / "backbone", options)
    runs = modular_stage(args, "configs/scenes_captioning_dtem.py", data, backbone)
    record_sweep(args, CLAIM, runs, data, MACS, "{} of the encoder's MACs", metrics=("CIDEr", "BLEU-4"))


if __name__ == "__main__":
    main()
