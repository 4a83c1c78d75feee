"""Names of metrics for people, and their values: shares in percent with one decimal."""

from beit.draw.numbers import short_number

NAMES = {
    "loss": "loss",
    "patch_loss": "loss of patches",
    "cls_loss": "loss from [CLS]",
    "auxiliary_loss": "auxiliary loss",
    "rate": "learning rate",
    "grad_norm": "gradient norm",
    # tokenizers
    "reconstruction": "reconstruction loss",
    "commitment": "commitment loss",
    "perplexity": "perplexity",
    "entropy": "entropy, nats",
    "dead": "unused codes",
    "choices": "patches counted",
    "position_perplexity_min": "lowest perplexity at a position",
    "position_perplexity_max": "highest perplexity at a position",
    "constant": "reconstruction by a constant",
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "kl": "divergence from uniform",
    "kl_weight": "weight of the divergence",
    # pretraining
    "rank": "median rank of the true code",
    "wrong_cosine": "cosine of a wrong code to the true one",
    "random_cosine": "cosine of two random codes",
    "cosine": "cosine to the target",
    "cls_cosine": "cosine to the target, from [CLS]",
    # data
    "images": "images read",
    "unreadable": "unreadable images",
    "knn_images": "images of the k-NN check",
}
SHARES = {
    "usage": "codes in use",
    "position_usage": "codes in use at a position",
    "accuracy": "accuracy",
    "cls_accuracy": "accuracy from [CLS]",
    "chance": "accuracy by chance",
    "first5": "true code among the first five",
    "first5_chance": "true code among the first five, by chance",
    "explained": "explained share",
    "cls_explained": "explained share, from [CLS]",
    "knn_cls": "k-NN, [CLS]",
    "knn_mean": "k-NN, mean of patches",
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "balanced": "balanced accuracy",
    "miou": "mean IoU",
    "mean_accuracy": "mean accuracy of classes",
    "pixel_accuracy": "pixel accuracy",
}


def name_of(key: str) -> str:
    """Name a metric as logged: `val_top1` is "validation top-1 accuracy"; others without `_`."""
    plain = key.removeprefix("val_")
    name = SHARES.get(plain) or NAMES.get(plain) or plain.replace("_", " ")
    return name if plain == key else f"validation {name}"


def is_share(key: str) -> bool:
    """Tell whether a metric is shown in percent."""
    return key.removeprefix("val_") in SHARES


def value_of(key: str, value: float) -> str:
    """Format a metric's value: shares as percent(), others as short_number()."""
    return percent(value) if is_share(key) else short_number(value)


def percent(share: float) -> str:
    """Format a share: 0.1234 is 12.3%."""
    return f"{100 * share:.1f}%"
