"""Backbone under hard merging and embeddings under soft merging in turn, from trained weights.

The authors did not release this part: alternation and 100 epochs are the paper's, the learning rates are
ours.

source     arXiv 2412.10569: alternation, epochs
differs    learning rates, warm-up, decay and the average of the weights are ours
"""

optim = dict(
    lr=5e-5,
    metric_lr=1e-4,
    min_lr=1e-6,
    warmup_steps=6255,
    weight_decay=0.05,
    clip_grad=5.0,
    ema_decay=0.9999,
)
train = dict(mode="end_to_end", epochs=100, alternate_period=10, eval_every=6255, save_every=1251)
seed = 42
