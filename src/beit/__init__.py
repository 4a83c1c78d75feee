"""Self-supervised visual pretraining with semantic tokens; the public names, resolved at first use.

`import beit` imports no torch: the modules behind the names are imported when a name is used.
Each verb of the command is a function, see `beit.calls`; editors read `__init__.pyi`.

Models take images (B, 3, H, W), RGB: uint8 in 0..255 or float in [0, 1], and normalise them. They
refuse anything else with an error that says what to give. `open_image` makes such images.
"""

from importlib import import_module as _import_module

__version__ = "0.1.0"

_DEFINED_IN = {
    "load": "beit.weights.open",
    "load_backbone": "beit.weights.open",
    "load_teacher": "beit.weights.teachers",
    "load_tokenizer": "beit.weights.open",
    "open_image": "beit.data.opening",
    "resume": "beit.calls",
    "save": "beit.weights.file",
}
__all__ = ["__version__", *_DEFINED_IN]


def __getattr__(name: str) -> object:
    if name in _DEFINED_IN:
        value = getattr(_import_module(_DEFINED_IN[name]), name)
    elif name in _import_module("beit.calls").VERB_OF:
        value = _import_module("beit.calls").function_of(name)
    else:
        near = _import_module("difflib").get_close_matches(name, __dir__(), n=1)
        hint = f"; did you mean beit.{near[0]}?" if near else ""
        raise AttributeError(f"module 'beit' has no attribute {name!r}{hint}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_DEFINED_IN, *_import_module("beit.calls").VERB_OF})
