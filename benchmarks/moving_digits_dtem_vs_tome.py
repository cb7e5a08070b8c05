"""DTEM and vid-TLDR against ToMe, random merging and DTEM's untrained embedding on clips of moving digits, at
half of the MACs and before it.

Trains one small video ViT from scratch, then its merge embeddings once per seed with the backbone frozen,
then sweeps all policies over the validation shards. A stopped script continues.

    dtem shards make moving_digits data/moving_digits --train 12000 --val 2000
    python benchmarks/moving_digits_dtem_vs_tome.py --train data/moving_digits --val data/moving_digits
"""

from stages import POLICIES, arguments, data_options, modular_stage, record_sweep, train_side_by_side, trial

MACS = (0.7, 0.5)
CLAIM = (
    "Moving digits, top-1 (%) of a frozen video ViT: DTEM and vid-TLDR above ToMe and random merging at half "
    "of the MACs"
)


def main() -> None:
    args = arguments(__doc__, "moving_digits_dtem_vs_tome").parse_args()
    data = data_options(args, "moving_digits")
    options = [[*data, *trial(args)]]
    (backbone,) = train_side_by_side("configs/moving_digits_vit.py", [args.work / "backbone"], options)
    runs = modular_stage(args, "configs/moving_digits_vit_dtem.py", data, backbone)
    policies = (*POLICIES, "vid_tldr")
    record_sweep(args, CLAIM, runs, data, MACS, "{} of the MACs", policies=policies)


if __name__ == "__main__":
    main()
