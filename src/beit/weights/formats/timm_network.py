"""Any timm model: with random weights, pretrained through the hub, or from a file of weights."""

import difflib
import socket
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from beit.weights.formats.clip import from_clip
from beit.weights.formats.containers import read_tensors


def timm_network(
    name: str,
    image_size: tuple[int, int] | None,
    pretrained: bool,
    file: Path | None = None,
) -> Any:
    """Create a timm model; its `pretrained_cfg` says how it was trained.

    Random weights are the same every time; the default random generator is left as it was.

    Args:
        image_size: (height, width); a model of fixed size is built for it; None: its own
        pretrained: take the weights of the file, or without one, those that timm has in the hub
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
        options["act_layer"] = "quick_gelu"  # what its weights were trained with, timm says
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return timm.create_model(name, **options)
    except OSError as error:
        raise OSError(f"{_no_weights(name)} ({_first_line(error)})") from error
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"timm:{name}{f'@{file}' if file else ''}: {error}") from error
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        raise ValueError(f"timm:{name} takes images of {cfg.input_size[1:]} only") from error


def _config(name: str) -> Any:
    """Look up what timm knows of a model, its tag included."""
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
    """Point timm at a local file of weights, with as many classes as the file has."""
    tensors = read_tensors(file)
    overlay: dict[str, Any] = {"file": str(file), "custom_load": False}
    if isinstance(cfg.classifier, str):
        # Where the numbers differ, timm would drop the classifier and load the rest laxly.
        classifier = (from_clip(tensors) or tensors).get(f"{cfg.classifier}.weight")
        overlay["num_classes"] = 0 if classifier is None else len(classifier)
    return overlay


def _hub_overlay(name: str, cfg: Any) -> dict[str, Any]:
    """Use the copy that the hub's cache has, if the hub cannot be reached; without one, say so.

    Asking first saves a minute of retries.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    if not cfg.has_weights:
        raise ValueError(
            f"timm has no pretrained weights for {name}; give timm:{name}@FILE or "
            "pretrained=False for random ones"
        )
    if urllib.request.getproxies():  # the proxy resolves names, we need not
        return {}
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError as error:
        for filename in ("model.safetensors", "pytorch_model.bin"):
            found = try_to_load_from_cache(cfg.hf_hub_id, filename) if cfg.hf_hub_id else None
            if isinstance(found, str):
                return {"file": found}
        raise OSError(f"{_no_weights(name)} ({_first_line(error)})") from error
    return {}


def _no_weights(name: str) -> str:
    return (
        f"the pretrained weights of timm:{name} could not be had from the hub; where there is no "
        f"network, fetch the file elsewhere and give timm:{name}@FILE, or pretrained=False "
        "for random weights"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
