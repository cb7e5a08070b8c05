"""Training of a LeMeViT from chance: 300 epochs, with AdamW and an average of the weights.

source     LeMeViT (Jiang et al., IJCAI 2024), lemevit.yaml of its code: 5e-4 for 512 images, cosine to 1e-5
           for as many, 5 epochs of warm-up, weight decay 0.05, stochastic depth 0.15, unclipped, average
           of the weights 0.996
differs    1008 images in a step, as 3 views of 42 samples on each of 8 GPUs; the rate moves in each step, not
           each epoch, and its warm-up starts at lr / steps; no cool-down of 20 epochs behind the 280

`data.views` is 3 there, so 100 epochs of the samples are 300.
"""

optim = dict(lr=1e-3, min_lr=2e-5, warmup_epochs=5 / 3, weight_decay=0.05, clip_grad=None, ema_decay=0.996)
train = dict(mode="backbone", epochs=100, eval_every=12710, save_every=3813)
