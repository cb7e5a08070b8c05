"""DTEM as this project trains it best; the ablation behind each choice is in docs/."""

merging = dict(policy="dtem", reduction=16)
