"""The words of charts and pages for what commands and files name by identifiers."""

from launch.saved.policy_names import UNTRAINED
from pipeline.errors import printable

CAPTION_SHARES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "SPICE")
"""Scores of captions in [0, 1], which papers give in per cent."""
PART = ", "
"""Between a policy and the kind of its schedules."""
POLICIES = {
    "none": "no merging",
    "random": "random",
    "tome": "ToMe",
    "mctf": "MCTF",
    "dtem": "DTEM",
    "evit": "EViT",
    "gtp": "GTP-ViT",
    "vid_tldr": "vid-TLDR",
    "pitome": "PiToMe",
    "tofu": "ToFu",
    "mutual": "mutual pairs",
    "atc": "ATC",
    "diffrate": "DiffRate",
    "algm": "ALGM",
    "grid_average": "patch averaging",
    "ailurus": "AiluRus-style",
    "as_vit": "AS-ViT",
    "stvit": "STViT",
    "rlt": "RLT",
}
METRICS = {
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "aAcc": "accuracy of pixels",
    "mAcc": "mean accuracy of classes",
    "mAP": "mean average precision",
    "F1_micro": "F1 of all decisions together",
    "F1_macro": "mean F1 of classes",
    "Acc": "accuracy",
    "words": "words in a caption",
    "agreement": "agreement with the unmerged model",
    "divergence": "divergence from the unmerged model",
    "cosine": "cosine with the unmerged features",
    "error": "error of the features",
}


def policy_words(label: str) -> str:
    """`DTEM, untrained, solved` for the label of dtem_untrained under solved schedules; the name of
    somebody's own policy with blanks."""
    policy, part, kind = label.partition(PART)
    name = policy.removesuffix(UNTRAINED)
    words = POLICIES.get(name, task_words(name)) + (", untrained" if policy != name else "")
    return words + part + printable(kind)


def curve_label(policy: str, kind: str) -> str:
    """The label of a policy's curve under schedules of one kind; empty where a sweep has one kind alone."""
    return f"{policy}{PART}{kind}" if kind else policy


def metric_words(metric: str, unit: str = "") -> str:
    """`top-1 accuracy (%)` for top1 in per cent."""
    words = METRICS.get(metric, metric)
    return f"{words} ({unit})" if unit else words


def task_words(task: str) -> str:
    """The name that a user gave a task, with blanks."""
    return printable(task.replace("_", " "))
