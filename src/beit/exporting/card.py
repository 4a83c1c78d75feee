"""Write the model card of a run, in the Hugging Face hub's Markdown."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from beit.run.directory import RunDirectory
from beit.run.finished import kept_metrics
from beit.run.settings import flat
from beit.weights.file import FORMAT, read_shapes
from beit.weights.hub import REPOSITORY_FILES
from beit.weights.open import SUFFIXES

# The hub's names of tasks.
DEFAULT_TASK = "image-feature-extraction"
TASKS = {"ImageClassifier": "image-classification", "SemanticSegmenter": "image-segmentation"}
DESCRIPTIONS = {
    "VQKD": "a visual tokenizer (VQ-KD): it assigns one of K codes to each patch of an image",
    "DiscreteVAE": "a visual tokenizer (discrete VAE): it assigns one of K codes to each patch",
    "MaskedImageModel": "a vision Transformer pretrained to predict masked patches",
    "ImageClassifier": "an image classifier",
    "SemanticSegmenter": "a semantic segmentation model",
}
USE = {  # Python code, for a source
    "VQKD": """tokenizer = beit.load_tokenizer("{}")
codes = tokenizer.encode(images)  # (B, 3, H, W) uint8, or float in [0, 1] -> (B, N) int64""",
    "MaskedImageModel": """backbone = beit.load_backbone("{}")
cls, patches, grid, layers = backbone(images)  # (B, 3, H, W) uint8, or float in [0, 1]""",
    "ImageClassifier": """classifier = beit.load("{}")
logits = classifier(images)  # (B, 3, H, W) uint8, or float in [0, 1] -> (B, Y)""",
}
GRAPHS = (".onnx", ".pt2")
BOOKKEEPING = ("step", "epoch", "rate")  # in the log, but not metrics
DATA = ("train", "validation", "limit")
# Sections of the configuration that are shown.
SECTIONS = ("tokenizer", "target", "teacher", "codebook", "mask", "view", "optim")


class Weights(NamedTuple):
    """The metadata of a weights file of ours, and its number of values."""

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
    """Return the card of a finished run: how to load it, data, recipe, scores, software, machine.

    Args:
        repository: OWNER/NAME in the hub
        files: to upload, by name in the repository
        probe: the probe.json of a `beit probe` of the run
        license: by the hub's identifier; empty for none
    """
    weights, config = read_metadata(run.weights_file), run.config()
    environment = run.environment()
    task = TASKS.get(weights.kind, DEFAULT_TASK)
    head: dict[str, Any] = {"library_name": "beit", "pipeline_tag": task}
    head["tags"] = ["beit", run.verb(), weights.kind.lower()]
    if license:
        head["license"] = license
    what = DESCRIPTIONS.get(weights.kind, f"a {weights.kind}")
    by = f"Trained by `beit {run.verb()}`; {weights.values:,} values in its weights file."
    data = {name: value for name, value in config.get("data", {}).items() if name in DATA}
    use = _use(weights.kind, repository, files)
    use = use.replace("(B, 3, H, W)", f"(B, {_channels(weights.config)}, H, W)")
    parts = [
        f"# {repository.rpartition('/')[2]}",
        f"{what[0].upper()}{what[1:]}. {by}",
        f"## Use\n\n{use}",
        f"## Data\n\n{_line(data)}",
        f"## Recipe\n\n{_recipe(weights, config)}",
        f"## Scores\n\n{_scores(run, config)}{'' if probe is None else _probe(probe)}",
        f"## Made with\n\n{_line(_environment(environment))}",
    ]
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n" + "\n\n".join(parts) + "\n"


def read_metadata(path: Path) -> Weights:
    """Read the metadata of a weights file of ours, without its tensors."""
    try:
        shapes, metadata = read_shapes(path)
        about = json.loads(metadata[FORMAT])
        return Weights(about["kind"], about["config"], sum(map(math.prod, shapes.values())))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a weights file of beit ({error!r})") from error


def _use(kind: str, repository: str, files: Mapping[str, Path]) -> str:
    """Describe how to open the files."""
    standard = any(name in REPOSITORY_FILES for name in files)
    loaded = [name for name in files if Path(name).suffix in SUFFIXES]
    lines = []
    if loaded:
        source = f"hf://{repository}" + ("" if standard else f"/{loaded[0]}")
        use = USE.get(kind, 'model = beit.load("{}")').format(source)
        lines += [f"```python\nimport beit\n\n{use}\n```"]
        lines += ["Images go in as they are: the model normalises them itself."]
    if "config.json" in files:
        if "architecture" in json.loads(files["config.json"].read_text(encoding="utf-8")):
            call = f'timm opens it too: `timm.create_model("hf-hub:{repository}", pretrained=True)`'
        else:
            call = f'transformers opens it too: `AutoModel.from_pretrained("{repository}")`'
        lines += [f"{call}."]
    what = "fetches the graph, which takes images as float32 in [0, 1], (B, 3, H, W)"
    for name in (name for name in files if name.endswith(GRAPHS)):
        lines += [f'`huggingface_hub.hf_hub_download("{repository}", "{name}")` {what}.']
    return "\n\n".join(lines) or "See the files."


def _channels(config: Mapping[str, Any]) -> int:
    """Return the number of channels of the images of a model; a grey one takes RGB."""
    part = config.get("backbone") or config.get("encoder") or config
    channels: int = part.get("in_channels", 3)
    return 3 if channels == 1 else channels


def _recipe(weights: Weights, config: Mapping[str, Any]) -> str:
    """List the sections that define the result, then the whole configuration."""
    sections = {"model": weights.config} | {name: config.get(name) for name in SECTIONS}
    lines = []
    for name, value in sections.items():
        if value:
            lines += [f"- {name}: {_line(value) if isinstance(value, Mapping) else f'`{value}`'}"]
    whole = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, width=100)
    title = "<details><summary>The whole configuration</summary>"
    return "\n".join(lines) + f"\n\n{title}\n\n```yaml\n{whole}```\n\n</details>"


def _scores(run: RunDirectory, config: Mapping[str, Any]) -> str:
    """Tabulate the metrics of the weights, those of the validation first."""
    logged = kept_metrics(run.metrics_file, config) if run.metrics_file.is_file() else {}
    values = {name: value for name, value in logged.items() if name not in BOOKKEEPING}
    if not values:
        return "None were logged.\n"
    order = sorted(values, key=lambda name: not name.startswith(("val_", "knn_")))  # stable
    rows = [f"| `{name}` | {values[name][0]:.4g} | {values[name][1]} |" for name in order]
    return "\n".join(["| figure | value | step |", "|---|---|---|", *rows]) + "\n"


def _probe(path: Path) -> str:
    """Tabulate the accuracies of the linear probe and of k-NN."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        rows = [
            f"| `{row['features']}` | {100 * row['linear']:.1f} | {100 * row['knn']:.1f} |"
            for row in record["rows"]
        ]
        test, count = record["config"]["test"], record["sizes"]["test"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the record of a beit probe ({error!r})") from error
    table = "\n".join(["| features | linear probe | k-NN |", "|---|---|---|", *rows])
    title = f"On frozen features, accuracy in percent on {count} images of `{test}`"
    return f"\n{title}:\n\n{table}\n"


def _environment(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Select software, machine and date."""
    gpus, cpus = environment.get("gpus") or [], environment.get("cpus")
    return {
        "beit commit": environment.get("commit"),
        "torch": environment.get("torch"),
        "Python": environment.get("python"),
        "machine": f"{len(gpus)} x {gpus[0]}" if gpus else f"{cpus} CPU cores",
        "begun": environment.get("started"),
    }


def _line(values: Mapping[str, Any]) -> str:
    """Format values with their names in one line, without those that are not set."""
    chosen = {name: value for name, value in flat(values).items() if value not in (None, "", {})}
    return ", ".join(f"{name} `{value}`" for name, value in chosen.items()) or "not recorded"
