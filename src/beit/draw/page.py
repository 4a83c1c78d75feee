"""Pages to explore: one HTML file with its script, style and data, which loads nothing else."""

import base64
import hashlib
import json
from importlib import resources

import jinja2
from jinja2.environment import TemplateStream
from markupsafe import Markup

_MEDIA = {b"\xff\xd8\xff": "jpeg", b"\x89PNG": "png", b"RIFF": "webp"}
_SHARED = ("page.js", "gallery.js", "map.js", "frame.js")


def page_stream(
    package: str, name: str, scripts: tuple[str, ...], **values: object
) -> TemplateStream:
    """Render NAME.html.jinja of a package with NAME.css and its scripts, after those of all pages.

    The template fills the blocks of page.html.jinja. It gets `script`, `style`, their hashes for
    the page's policy, and `values`.
    """
    parts = [_text("beit.draw", part) for part in _SHARED] + [_text(package, s) for s in scripts]
    script = "(() => {\n" + "\n".join(parts) + "})();"
    style = _text("beit.draw", "page.css") + _text(package, f"{name}.css")
    templates = {
        "page.html.jinja": _text("beit.draw", "page.html.jinja"),
        "own": _text(package, f"{name}.html.jinja"),
    }
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(templates),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("own").stream(
        script=Markup(script),
        script_hash=script_hash(script),
        style=Markup(style),
        style_hash=script_hash(style),
        **values,
    )


def base64_of(data: bytes) -> str:
    """Encode bytes as text."""
    return base64.b64encode(data).decode()


def data_url(data: bytes, what: str) -> str:
    """Return the address that contains a picture; ValueError naming `what` if it is none."""
    for start, kind in _MEDIA.items():
        if data.startswith(start):
            return f"data:image/{kind};base64,{base64_of(data)}"
    raise ValueError(f"{what} is not a JPEG, PNG or WebP image: it begins with {data[:8]!r}")


def json_text(value: object) -> str:
    """Return ASCII JSON without `<`, `>` and `&`, so that it cannot end a script element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def script_hash(source: str) -> str:
    """Return the hash by which a page's Content-Security-Policy allows an inline part."""
    return base64_of(hashlib.sha256(source.encode()).digest())


def _text(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text("utf-8")
