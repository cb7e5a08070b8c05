"""AdamW for models of this size, from chance.

source     none: this project's own
"""

optim = dict(lr=2e-3, min_lr=1e-5, warmup_steps=200, weight_decay=0.05, betas=(0.9, 0.99), clip_grad=1.0)
