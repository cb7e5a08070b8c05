"""CoCa on COCO with merged tokens: CLIP's ViT-B/16, an attentional pooler and CoCa's text tower and decoder
learn together with DTEM.

data       dtem shards make coco_captions PATH/TO/coco data/coco_captions
command    deepspeed --num_gpus 8 launch/train.py --config configs/coco_coca_vit_base_dtem.py
then       dtem sweep runs/coco_coca_vit_base_dtem; dtem visualise runs/coco_coca_vit_base_dtem
source     CoCa, arXiv 2205.01917, by open_clip's modules; losses weighed 2 to 1, as there
differs    CLIP's image tower and everything else from chance on COCO alone, where CoCa has billions of pairs;
           rates, epochs and crops ours
hardware   8 GPUs for a batch of 512; memory not measured: on small ones, halve batch_size and double
           accumulation
expected   to be measured

The pooler, the text tower and the decoder start from chance. To train only the embeddings of a published
CoCa, whose patches are of 32 pixels, override backbone.name=vit_base_patch32_clip_224
backbone.pretrained=false backbone.weights=open_clip:coca_ViT-B-32@mscoco_finetuned_laion2b_s13b_b90k
merging.reduction=3 train.mode=modular optim.lr=2e-3 optim.layer_decay=1.0.
"""

_base_ = ["_base_/merging/dtem.py", "_base_/task/coco_captions.py", "_base_/engine/deepspeed.py"]
backbone = dict(name="vit_base_patch16_clip_224.openai", pretrained=True, drop_path=0.1)
merging = dict(reduction=8)
tasks = dict(coco_captions=dict(head=dict(model="coca_ViT-B-32", route="pooler")))
optim = dict(
    lr=2e-4,
    metric_lr=1e-3,
    min_lr=1e-6,
    warmup_steps=500,
    weight_decay=0.1,
    betas=(0.9, 0.98),
    layer_decay=0.75,
    clip_grad=1.0,
)
train = dict(mode="end_to_end", epochs=20, alternate_period=10, eval_every=1000, save_every=500)
output = "runs/{{ fileBasenameNoExtension }}"
