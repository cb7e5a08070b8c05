"""DTEM as this project trains it best: the embedding learns what merging costs (docs/merge_cost.md; the
ablation is in docs/log.md).

source     docs/merge_cost.md
"""

merging = dict(policy="dtem", reduction=16)
objective = dict(type="merge_cost")
