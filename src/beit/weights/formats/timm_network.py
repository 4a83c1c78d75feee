"""Create timm models: with random weights, pretrained ones from the hub, or those of a file."""

import difflib
from pathlib import Path
from typing import Any

import torch

from beit.weights.formats.clip import from_clip
from beit.weights.formats.containers import read_tensors
from beit.weights.hub import first_line, unreachable


def timm_network(
    name: str,
    image_size: tuple[int, int] | None,
    pretrained: bool,
    file: Path | None = None,
) -> Any:
    """Create a timm model; its `pretrained_cfg` describes its training.

    Random weights are always the same; the default random generator is unchanged.

    Args:
        image_size: (height, width) for which a model of fixed size is built; None: its default
        pretrained: load the weights of `file`, or those in the hub if there is no file
    """
    import timm

    cfg = _config(name)
    options: dict[str, Any] = {"pretrained": pretrained}
    if file is not None:
        options["pretrained_cfg_overlay"] = _file_overlay(cfg, file)
    elif pretrained:
        options["pretrained_cfg_overlay"] = _hub_overlay(name, cfg)
    if image_size is not None and cfg.fixed_input_size:
        options["img_size"] = image_size
    if "quickgelu" not in name and any("natively QuickGELU" in note for note in cfg.notes or ()):
        options["act_layer"] = "quick_gelu"  # used in training, according to timm's note
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return timm.create_model(name, **options)
    except OSError as error:
        raise OSError(_no_weights(name, first_line(error))) from error
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"timm:{name}{f'@{file}' if file else ''}: {error}") from error
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        raise ValueError(f"timm:{name} takes images of {cfg.input_size[1:]} only") from error


def _config(name: str) -> Any:
    """Look up timm's configuration of a model, with or without a tag."""
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = ", ".join(difflib.get_close_matches(architecture, timm.list_models(), n=3))
        raise ValueError(f"timm has no model {architecture}; near it: {near or 'none'}")
    known = timm.list_pretrained(architecture + ".*")
    if tag and name not in known:
        raise ValueError(
            f"timm has no weights of the name {name}; known: {', '.join(known) or 'none'}"
        )
    return timm.get_pretrained_cfg(name)


def _file_overlay(cfg: Any, file: Path) -> dict[str, Any]:
    """Set a local file of weights, and the number of classes in it."""
    tensors = read_tensors(file)
    overlay: dict[str, Any] = {"file": str(file), "custom_load": False}
    if isinstance(cfg.classifier, str):
        # If the numbers differ, timm drops the classifier and does not load the rest strictly.
        classifier = (from_clip(tensors) or tensors).get(f"{cfg.classifier}.weight")
        overlay["num_classes"] = 0 if classifier is None else len(classifier)
    return overlay


def _hub_overlay(name: str, cfg: Any) -> dict[str, Any]:
    """If the hub cannot be reached, set the file in its cache; raise OSError if there is none."""
    from huggingface_hub import constants, try_to_load_from_cache

    if not cfg.has_weights:
        raise ValueError(
            f"timm has no pretrained weights for {name}; give timm:{name}@FILE or "
            "pretrained=False for random ones"
        )
    reason = unreachable(constants.ENDPOINT)
    if reason is None:
        return {}
    for filename in ("model.safetensors", "pytorch_model.bin"):
        path = try_to_load_from_cache(cfg.hf_hub_id, filename) if cfg.hf_hub_id else None
        if isinstance(path, str):
            return {"file": path}
    raise OSError(_no_weights(name, reason))


def _no_weights(name: str, reason: str) -> str:
    return (
        f"the pretrained weights of timm:{name} could not be loaded from the hub ({reason}); "
        f"without a network, download the file elsewhere and give timm:{name}@FILE, or "
        "pretrained=False for random weights"
    )
