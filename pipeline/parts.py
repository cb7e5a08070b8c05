"""The kinds of parts that a model has, and which of them a mode of training trains."""

METRIC, BASE, HEAD, BALANCE = "metric", "base", "head", "balance"
"""Metric embeddings, backbone, heads, and what weighs the tasks' losses."""

TRAINED = {
    "modular": frozenset({METRIC}),
    "backbone": frozenset({BASE, HEAD}),
    "heads": frozenset({HEAD}),
    "joint": frozenset({METRIC, BASE, HEAD}),
    "end_to_end": frozenset({METRIC, BASE, HEAD}),
}
"""Mode of training -> kinds that it trains, sooner or later. What weighs the losses is trained in every
mode."""
