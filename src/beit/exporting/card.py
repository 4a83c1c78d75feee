"""The model card: what a run left behind, in the Markdown that the Hugging Face hub shows."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from safetensors import SafetensorError, safe_open

from beit.run.directory import RunDirectory
from beit.weights.file import FORMAT
from beit.weights.hub import REPOSITORY_FILES
from beit.weights.open import SUFFIXES

TASK = "image-feature-extraction"  # as the hub calls it; of other models:
TASKS = {"ImageClassifier": "image-classification", "SemanticSegmenter": "image-segmentation"}
WHAT = {
    "VQKD": "a visual tokenizer (VQ-KD): it gives each patch of an image one of K codes",
    "DiscreteVAE": "a visual tokenizer (discrete VAE): it gives each patch one of K codes",
    "MaskedImageModel": "a vision Transformer pretrained to predict masked patches",
    "ImageClassifier": "an image classifier",
    "SemanticSegmenter": "a semantic segmentation model",
}
USE = {  # from Python, of a source
    "VQKD": """tokenizer = beit.load_tokenizer("{}")
codes = tokenizer.encode(images)  # (B, 3, H, W) uint8, or float in [0, 1] -> (B, N) int64""",
    "MaskedImageModel": """backbone = beit.load_backbone("{}")
cls, patches, grid, layers = backbone(images)  # (B, 3, H, W) uint8, or float in [0, 1]""",
    "ImageClassifier": """classifier = beit.load("{}")
logits = classifier(images)  # (B, 3, H, W) uint8, or float in [0, 1] -> (B, Y)""",
}
GRAPHS = (".onnx", ".pt2")
BOOKKEEPING = ("step", "epoch", "rate")  # in the log, beside figures
DATA = ("train", "validation", "limit")
# Sections of a configuration.
SECTIONS = ("tokenizer", "target", "teacher", "codebook", "mask", "view", "optim")


class Weights(NamedTuple):
    """What a weights file of ours says of itself."""

    kind: str
    config: Mapping[str, Any]
    values: int


def model_card(
    run: RunDirectory,
    repository: str,
    files: Mapping[str, Path],
    probe: Path | None = None,
    license: str = "",
) -> str:
    """Write the card of a finished run: how to load it, data, recipe, scores, and where it ran.

    Args:
        repository: OWNER/NAME in the hub
        files: what goes there, by names in the repository
        probe: the probe.json of a `beit probe` of it
        license: of the weights, by the hub's name for it; empty leaves it unsaid
    """
    weights, config = read_about(run.weights_file), run.config()
    about = json.loads(run.environment_file.read_text(encoding="utf-8"))
    head: dict[str, Any] = {"library_name": "beit", "pipeline_tag": TASKS.get(weights.kind, TASK)}
    head["tags"] = ["beit", run.verb(), weights.kind.lower()]
    if license:
        head["license"] = license
    what = WHAT.get(weights.kind, f"a {weights.kind}")
    by = f"Trained by `beit {run.verb()}`; {weights.values:,} values in its weights file."
    data = {name: value for name, value in config.get("data", {}).items() if name in DATA}
    parts = [
        f"# {repository.rpartition('/')[2]}",
        f"{what[0].upper()}{what[1:]}. {by}",
        f"## Use\n\n{_use(weights.kind, repository, files)}",
        f"## Data\n\n{_line(data)}",
        f"## Recipe\n\n{_recipe(weights, config)}",
        f"## Scores\n\n{_scores(run.metrics_file)}{'' if probe is None else _probe(probe)}",
        f"## Made with\n\n{_line(_origin(about))}",
    ]
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n" + "\n\n".join(parts) + "\n"


def read_about(path: Path) -> Weights:
    """Read what a weights file of ours is, its tensors left on the disk."""
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})[FORMAT])
            sizes = [file.get_slice(name).get_shape() for name in file.keys()]
        return Weights(about["kind"], about["config"], sum(map(math.prod, sizes)))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a weights file of beit ({error!r})") from error


def _use(kind: str, repository: str, files: Mapping[str, Path]) -> str:
    """Tell how the files are opened."""
    standard = any(name in REPOSITORY_FILES for name in files)
    loaded = [name for name in files if Path(name).suffix in SUFFIXES]
    lines = []
    if loaded:
        source = f"hf://{repository}" + ("" if standard else f"/{loaded[0]}")
        use = USE.get(kind, 'model = beit.load("{}")').format(source)
        lines += [f"```python\nimport beit\n\n{use}\n```"]
        lines += ["Images go in as they are: the model normalises them itself."]
    if "config.json" in files:
        of_timm = "architecture" in json.loads(files["config.json"].read_text(encoding="utf-8"))
        timm = f'timm opens it too: `timm.create_model("hf-hub:{repository}", pretrained=True)`.'
        transformers = f'transformers opens it too: `AutoModel.from_pretrained("{repository}")`.'
        lines += [timm if of_timm else transformers]
    lines += [
        f'`huggingface_hub.hf_hub_download("{repository}", "{name}")` fetches the graph, which '
        "takes images as float in [0, 1], (B, 3, H, W)."
        for name in files
        if name.endswith(GRAPHS)
    ]
    return "\n\n".join(lines) or "See the files."


def _recipe(weights: Weights, config: Mapping[str, Any]) -> str:
    """Name the sections of the configuration that make the result what it is, then all of it."""
    sections = {"model": weights.config} | {name: config.get(name) for name in SECTIONS}
    lines = [
        f"- {name}: {_line(value) if isinstance(value, Mapping) else f'`{value}`'}"
        for name, value in sections.items()
        if value
    ]
    whole = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, width=100)
    return (
        "\n".join(lines) + "\n\n<details><summary>The whole configuration</summary>\n\n"
        f"```yaml\n{whole}```\n\n</details>"
    )


def _scores(metrics: Path) -> str:
    """Tabulate the last value of each figure of the log; of validation first, if there was one."""
    last: dict[str, tuple[float, int]] = {}
    if metrics.is_file():
        for line in metrics.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            for name, value in record.items():
                if name not in BOOKKEEPING and isinstance(value, int | float):  # not a warning
                    last[name] = (value, record["step"])
    if not last:
        return "None were logged.\n"
    order = sorted(last, key=lambda name: not name.startswith(("val_", "knn_")))  # stable
    rows = [f"| `{name}` | {last[name][0]:.4g} | {last[name][1]} |" for name in order]
    return "\n".join(["| figure | last value | step |", "|---|---|---|", *rows]) + "\n"


def _probe(path: Path) -> str:
    """Tabulate the accuracies of a linear probe and of nearest neighbours."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        rows = [
            f"| `{row['features']}` | {100 * row['linear']:.2f} | {100 * row['knn']:.2f} |"
            for row in record["rows"]
        ]
        test, count = record["config"]["test"], record["sizes"]["test"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the record of a beit probe ({error!r})") from error
    return (
        f"\nOn frozen features, accuracy in percent on {count} images of `{test}`:\n\n"
        + "\n".join(["| features | linear probe | k-NN |", "|---|---|---|", *rows])
        + "\n"
    )


def _origin(about: Mapping[str, Any]) -> dict[str, Any]:
    """Name the software and the machine."""
    gpus = about.get("gpus") or []
    return {
        "beit commit": about.get("commit"),
        "torch": about.get("torch"),
        "Python": about.get("python"),
        "machine": f"{len(gpus)} x {gpus[0]}" if gpus else f"{about.get('cpus')} CPU cores",
        "begun": about.get("started"),
    }


def _line(values: Mapping[str, Any]) -> str:
    """Put values behind their names, in one line, leaving out what is not set."""
    return ", ".join(f"{name} `{value}`" for name, value in _flat(values)) or "not recorded"


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        elif value not in (None, ""):
            yield f"{above}{name}", value
