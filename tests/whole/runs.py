"""The tiny runs of the whole: plain data, the words of the command line and nothing of the package.

Every command is run in a folder of its own, where `starts/teacher.safetensors` lies (see
`write_teacher`); all paths are relative to it. Each training takes ten steps, two epochs of five,
with checkpoints at 3, 6, 9 and 10, log lines at these and at every second step, and a validation
after each epoch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import save_file

HALF = 6  # the checkpoint from which half-finished runs go on
TEACHER = "starts/teacher.safetensors"
TOKENIZER = "starts/tokenizer.safetensors"
PRETRAINED = "starts/pretrained.safetensors"
CLASSIFIER = "starts/classifier.safetensors"
SEGMENTER = "starts/segmenter.safetensors"

TRAIN, TEST = "shapes://43?size=32", "shapes://20?size=32&seed=1"
IMAGES = "shapes://11?size=32&seed=2"


class Training(NamedTuple):
    """A run of ten steps into `runs/NAME`.

    Attributes:
        keeps: where its weights are copied to, for the commands after it to start from
        kept: whether half of it lies in `assets`
    """

    name: str
    verb: str
    options: Mapping[str, object]
    keeps: str = ""
    kept: bool = True

    @property
    def arguments(self) -> list[str]:
        return [self.verb, *_words(self.options), f"--run.output=runs/{self.name}"]


class Reading(NamedTuple):
    """A command that writes a file, a folder or standard output from finished models.

    Attributes:
        output: what it writes; empty for standard output
    """

    name: str
    arguments: list[str]
    output: str = ""


def write_teacher(path: Path) -> None:
    """Write a tiny ViT in DINO's published layout.

    Its numbers are drawn whole and fit into float16, so they are the same on any machine.
    """
    rng, width = np.random.default_rng(7), 16
    path.parent.mkdir(parents=True, exist_ok=True)

    def drawn(*shape: int, around: float = 0.0) -> np.ndarray:
        return (rng.integers(-64, 65, shape) / 512 + around).astype(np.float16)

    tensors = {
        "cls_token": drawn(1, 1, width),
        "pos_embed": drawn(1, 1 + 16, width),
        "patch_embed.proj.weight": drawn(width, 3, 8, 8),
        "patch_embed.proj.bias": drawn(width),
        "norm.weight": drawn(width, around=1.0),
        "norm.bias": drawn(width),
    }
    layers = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
    for block in ("blocks.0", "blocks.1"):
        for norm in ("norm1", "norm2"):
            tensors[f"{block}.{norm}.weight"] = drawn(width, around=1.0)
            tensors[f"{block}.{norm}.bias"] = drawn(width)
        for layer, (rows, columns) in layers.items():
            tensors[f"{block}.{layer}.weight"] = 4 * drawn(rows * width, columns * width)
            tensors[f"{block}.{layer}.bias"] = drawn(rows * width)
    save_file(tensors, path)


def _words(options: Mapping[str, object]) -> list[str]:
    return [f"--{name}={value}" for name, value in options.items()]


# ── parts of commands ───────────────────────────────────────────────────────────────────────────

DATA = {"data.train": TRAIN, "data.validation": TEST, "data.num_workers": 0}
RUN = {
    "run.log_every": 2,
    "run.checkpoint_every": 3,
    "run.keep_last": 9,
    "device.accelerator": "cpu",
    "device.precision": "32-true",
}
OPTIM = {
    "optim.batch_size": 8,
    "optim.epochs": 2,
    "optim.learning_rate": 1e-3,
    "optim.warmup_epochs": 1,
}
COMMON = {**DATA, **RUN, **OPTIM, "crop_ratio": 1.0}
TEACHER_OPTIONS = {"source": TEACHER, "image_size": "[32,32]", "num_heads": 2}


def _vit(under: str, **changes: object) -> dict[str, object]:
    sizes = {"image_size": "[16,16]", "patch_size": 4, "width": 8, "depth": 2, "num_heads": 2}
    return {f"{under}.{name}": value for name, value in {**sizes, **changes}.items()}


def _named(under: str, options: Mapping[str, object]) -> dict[str, object]:
    return {f"{under}.{name}": value for name, value in options.items()}


VQKD = {
    **COMMON,
    **_vit("model.encoder", absolute_positions="true", relative_bias="none", layer_scale="null"),
    "model.encoder.init_bound": 2.0,
    "model.decoder_depth": 1,
    "model.num_codes": 16,
    "model.code_width": 4,
    "model.teacher_width": 0,
    "view.min_scale": 0.5,
}
DVAE = {
    "kind": "dvae",
    **COMMON,
    "model.image_size": "[32,32]",
    "model.num_codes": 16,
    "model.code_width": 4,
    "model.num_layers": 2,
    "model.hidden_width": 4,
    "temperature.end": 0.5,
    "temperature.share": 0.9,
    "temperature.shape": "exponential",
    "kl_weight.start": 0.5,
    "kl_weight.end": 0.2,
    "kl_weight.share": 0.5,
    "frechet_images": 0,
    "optim.clip": 1.0,
}
PRETRAIN = {
    **COMMON,
    **_vit("model.backbone", drop_path=0.1),
    "model.num_codes": 0,
    "model.early_layers": 1,
    "model.head_layers": 1,
    "mask.count": 6,
    "mask.min_block": 2,
    "view.min_scale": 0.5,
}
CHECK = {"check.every": 1, "check.limit": 40}
FINETUNE = {**COMMON, "init_scale": 1.0, "drop_path": 0.1}
SEGMENT = {
    **DATA,
    **RUN,
    "view.long_side": 128,
    "view.short_side": 16,
    "optim.batch_size": 8,
    "optim.steps": 10,
    "optim.warmup_steps": 2,
    "optim.learning_rate": 1e-3,
    "validate_every": 5,
    "drop_path": 0.1,
}

# ── the commands ────────────────────────────────────────────────────────────────────────────────

TRAININGS = [
    Training(
        "vqkd",
        "train-tokenizer",
        {**VQKD, **_named("teacher", TEACHER_OPTIONS), "codebook.revive_every": 3},
        keeps=TOKENIZER,
    ),
    Training(
        "vqkd-timm",
        "train-tokenizer",
        {
            **VQKD,
            "teacher.source": "timm:test_efficientnet",
            "teacher.image_size": "[64,64]",
            "teacher.pretrained": "false",
            "codebook.learn": "gradient",
            "codebook.commitment": "sum",
            "codebook.kmeans": "false",
        },
        kept=False,  # the teacher's random weights are timm's and torch's, not ours
    ),
    Training("dvae", "train-tokenizer", DVAE, keeps="starts/dvae.safetensors"),
    Training(
        "pretrain-tokens",
        "pretrain",
        {**PRETRAIN, **CHECK, "tokenizer": TOKENIZER},
        keeps=PRETRAINED,
    ),
    Training("pretrain-pixels", "pretrain", {**PRETRAIN, "target.kind": "pixels"}),
    Training(
        "pretrain-features",
        "pretrain",
        {**PRETRAIN, "target.kind": "features", **_named("target", TEACHER_OPTIONS)},
    ),
    Training(
        "finetune",
        "finetune",
        {**FINETUNE, "init": PRETRAINED, "num_heads": 2, "average": 0.9},
        keeps=CLASSIFIER,
    ),
    Training(
        "finetune-fresh",
        "finetune",
        {
            **FINETUNE,
            **_vit("backbone", relative_bias="per_block"),
            "pooling": "cls",
            "layer_decay": "null",
            "balance": 0.5,
            "augment.policy": "",
            "augment.erase": 0,
            "mix.mixup": 0,
            "mix.cutmix": 0,
            "optim.accumulate": 2,
            "optim.clip": 1.0,
            "keep": "last",
        },
    ),
    Training(
        "segment-upernet",
        "segment",
        {
            **SEGMENT,
            **_vit("backbone", width=4, depth=4, mlp_ratio=2, layer_scale="null"),
            "head.channels": 3,
            "head.auxiliary_channels": 3,
            "keep": "last",
            "validation_views.mode": "whole",
            "validation_batch": 5,
            "head.dropout": 0,
        },
        keeps="starts/upernet.safetensors",
    ),
    Training(
        "segment-linear",
        "segment",
        {
            **SEGMENT,
            "init": PRETRAINED,
            "num_heads": 2,
            "head.kind": "linear",
            "data.validation": "shapes://6?size=40&seed=1",
            "validation_views.short_side": 0,
            "validation_views.flip": "true",
        },
        keeps=SEGMENTER,
    ),
]

ON_CPU = ["--device.accelerator=cpu", "--num_workers=0"]
SIZE = ["--num_heads=2", "--crop_ratio=1.0", *ON_CPU]

ROWS = [
    Reading(
        f"{name}-{suffix}",
        [*arguments, f"--output=rows/{name}.{suffix}", "--batch_size=4", "--part_size=8"],
        f"rows/{name}.{suffix}",
    )
    for suffix in ("parquet", "jsonl")
    for name, arguments in {
        "tokens-vqkd": ["tokenize", "--model=runs/vqkd", f"--data={IMAGES}", *SIZE],
        "tokens-dvae": [
            *("tokenize", "--model=starts/dvae.safetensors", f"--data={IMAGES}"),
            *("--image_size=32", *ON_CPU),
        ],
        "features": [
            *("embed", "--model=runs/pretrain-tokens", f"--data={IMAGES}", *SIZE),
            "--features=[cls,mean,patches]",
        ],
        "features-of-block": [
            *("embed", f"--model={CLASSIFIER}", f"--data={IMAGES}", *SIZE),
            *("--layer=1", "--image_size=24"),
        ],
        "classes": ["predict", CLASSIFIER, IMAGES, "--top_k=3", *SIZE],
    }.items()
]
ROWS += [
    Reading("classes-printed", ["predict", "runs/finetune", IMAGES, *SIZE]),
    *(
        Reading(
            name,
            [
                *("predict", model, "shapes://4?size=32x40&seed=2", f"--output=rows/{name}"),
                *("--device.accelerator=cpu", "--num_workers=1", "--num_heads=2"),
            ],
            f"rows/{name}",
        )
        for name, model in {"maps": SEGMENTER, "maps-upernet": "runs/segment-upernet"}.items()
    ),
    Reading(
        "export-published",
        [
            *("export", "runs/pretrain-tokens", "--format=published", "--num_heads=2"),
            "--output=rows/published.pth",
        ],
        "rows/published.pth",
    ),
]

FIGURES = [
    Reading(
        "probe",
        [
            *("probe", "--model=runs/pretrain-tokens", f"--train={TRAIN}", f"--test={TEST}"),
            *("--epochs=3", "--batch_size=16", "--neighbours=[1,5]", "--layers=all", *SIZE),
            "--output=figures/probe",
        ],
        "figures/probe/probe.json",
    ),
    Reading(
        "probe-teacher",
        [
            *("probe", f"--model=teacher:{TEACHER}", f"--train={TRAIN}", f"--test={TEST}"),
            *("--epochs=2", "--batch_size=16", "--attentive=true", "--attentive_heads=2", *SIZE),
            *("--attentive_rates=[0.01,0.001]", "--optimizer=adamw", "--augment=true"),
            "--output=figures/probe-teacher",
        ],
        "figures/probe-teacher/probe.json",
    ),
    Reading(
        "evaluate",
        [
            *("evaluate", f"--model={CLASSIFIER}", f"--data={TEST}", "--batch_size=8", *SIZE),
            *("--crops=5", "--flip=true", "--corruptions=[gaussian_noise,fog]", "--severities=[3]"),
            "--output=figures/evaluate",
        ],
        "figures/evaluate/evaluate.json",
    ),
    Reading(
        "evaluate-maps",
        [
            *("evaluate", "--model=runs/segment-linear", "--data=shapes://6?size=40&seed=3"),
            *("--pictures=2", *ON_CPU, "--num_heads=2", "--output=figures/evaluate-maps"),
        ],
        "figures/evaluate-maps/evaluate.json",
    ),
]

# Verbs whose options depend on --kind; each kind beside the first one of the verb.
KINDS = {"train-tokenizer": ["dvae"], "evaluate": ["maps"], "predict": ["maps"]}
