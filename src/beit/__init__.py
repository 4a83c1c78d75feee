"""Self-supervised visual pretraining with semantic tokens; the public names, resolved at first use.

`import beit` imports no torch: the modules behind the names are imported when a name is used.

Models take images (B, 3, H, W), RGB: uint8 in 0..255 or float in [0, 1], and normalise them. They
refuse anything else with an error that says what to give. `open_image` makes such images.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from beit.data.opening import open_image
    from beit.weights.open import load, load_backbone, load_tokenizer
    from beit.weights.teachers import load_teacher

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "load",
    "load_backbone",
    "load_teacher",
    "load_tokenizer",
    "open_image",
]

_DEFINED_IN = {
    "load": "beit.weights.open",
    "load_backbone": "beit.weights.open",
    "load_teacher": "beit.weights.teachers",
    "load_tokenizer": "beit.weights.open",
    "open_image": "beit.data.opening",
}


def __getattr__(name: str) -> object:
    if name not in _DEFINED_IN:
        raise AttributeError(f"module 'beit' has no attribute {name!r}")
    value = getattr(import_module(_DEFINED_IN[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
