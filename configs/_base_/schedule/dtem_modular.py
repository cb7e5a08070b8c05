"""The paper's modular training: the backbone stays, 30 epochs teach the metric embeddings. Not scaled with
the batch, no warm-up.

source     arXiv 2412.10569: what learns, epochs
differs    rates that the paper does not give are ours
"""

optim = dict(lr=1e-4, min_lr=1e-6, warmup_steps=0, weight_decay=1e-4, clip_grad=5.0)
train = dict(mode="modular", epochs=30, eval_every=6255, save_every=1251)
seed = 42
