"""Names of wrapped models: remove what DDP, torch.compile or Lightning put before the names."""

import logging
from collections.abc import Callable, Mapping

from torch import Tensor

from beit.weights.formats.published_names import counted

logger = logging.getLogger(__name__)

COMPILED = "_orig_mod."  # of torch.compile, which also wraps parts of a model
ENCODER = "encoder."  # also a part of tokenizers: removed only if all names begin with it
# Of DistributedDataParallel and AveragedModel, of attributes of a LightningModule, of distillation.
WRAPPERS = ("module.", "model.", "backbone.", ENCODER, "net.", "network.", "student.", "teacher.")
MAX_WRAPPERS = 4  # around each other

Recognises = Callable[[Mapping[str, Tensor]], object]  # true or false


def without_prefix(
    tensors: Mapping[str, Tensor], recognises: Recognises, origin: str
) -> dict[str, Tensor]:
    """Return the tensors by names that `recognises` accepts, without the prefix of wrappers.

    Names that are accepted as they are do not change: some layouts have such prefixes themselves.
    Tensors without the prefix are left out; one line of the log lists the prefix and what was left
    out. If no prefix leads to a known layout, only `COMPILED` is removed.

    Raises:
        ValueError: models under several prefixes are accepted
    """
    named = {name.replace(COMPILED, ""): tensor for name, tensor in tensors.items()}
    if len(named) < len(tensors):
        raise ValueError(f"{origin} has names that differ only in {COMPILED!r}; save one model")
    prefixes = _prefixes(named, recognises, MAX_WRAPPERS)
    if len(prefixes) > 1:
        listed = ", ".join(map(repr, prefixes))
        raise ValueError(f"{origin} has models under the prefixes {listed}; save one of them alone")
    prefix = "".join(prefixes)
    kept = {name.removeprefix(prefix): named[name] for name in named if name.startswith(prefix)}
    removed = [repr(COMPILED)] if named.keys() != tensors.keys() else []
    removed += [f"the prefix {prefix!r}"] if prefix else []
    if removed:
        outside = [name for name in named if not name.startswith(prefix)]
        groups = (_beginning(name, prefix.count(".")) for name in outside)
        notes = "; left out ".join([f"of {len(kept)} names", *counted(groups)])
        logger.info("%s: removed %s %s", origin, " and ".join(removed), notes)
    return kept


def _beginning(name: str, count: int) -> str:
    """Shorten a name to so many parts: `decoder.*` for one; shorter names stay."""
    parts = name.split(".")
    return name if len(parts) <= count else ".".join([*parts[:count], "*"])


def _prefixes(tensors: Mapping[str, Tensor], recognises: Recognises, depth: int) -> list[str]:
    """List the prefixes under which names are accepted; "" alone if they are as they are."""
    if recognises(tensors):
        return [""]
    found = []
    for wrapper in WRAPPERS if depth else ():
        names = [name for name in tensors if name.startswith(wrapper)]
        if names and (wrapper != ENCODER or len(names) == len(tensors)):
            inner = {name.removeprefix(wrapper): tensors[name] for name in names}
            found += [wrapper + rest for rest in _prefixes(inner, recognises, depth - 1)]
    return found
