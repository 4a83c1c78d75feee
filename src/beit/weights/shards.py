"""Weights in several files with an index, as transformers saves them, and JSON beside weights."""

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from beit.run.settings import first
from beit.weights.file import read_safetensors
from beit.weights.safe_pickle.files import read_checkpoint
from beit.wording import an

INDEX = ".index.json"
SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})(?P<suffix>\.\w+)")
PLAIN = re.compile(r"[^/\\]+\.(safetensors|bin|pt|pth)")  # a file in the same folder


def read_file(path: Path) -> tuple[Mapping[str, Any], dict[str, str]]:
    """Read a safetensors file, a checkpoint or the shards of an index, and possibly metadata."""
    if path.name.endswith(INDEX):
        return _read_shards(path), {}
    return read_safetensors(path) if path.suffix == ".safetensors" else (read_checkpoint(path), {})


def refuse_shard(path: PurePath) -> None:
    """Raise ValueError if the file name is that of one of several files of a model."""
    shard = SHARD.fullmatch(path.name)
    if shard is not None and int(shard["count"]) > 1:
        index = path.with_name(f"{shard['stem']}{shard['suffix']}{INDEX}")
        raise ValueError(
            f"{path} has a part of a model that was saved in {int(shard['count'])} files; give "
            f"the index of all, {index.name}, with the files beside it"
        )


def weight_map(index: Path) -> dict[str, str]:
    """Read an index: the file of each tensor, by its name. Files are in the folder of the index."""
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise ValueError(f"{index} has no weight_map, expected the file of each tensor by its name")
    for file in files.values():
        if not (isinstance(file, str) and PLAIN.fullmatch(file)):
            raise ValueError(f"{index} names {file!r}, expected NAME.safetensors or NAME.bin")
    return files


def read_json(path: Path) -> dict[str, Any]:
    """Read an object from a JSON file beside weights."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {an(type(content).__name__)}, expected an object")
    return content


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object; refuse a name that occurs twice, of which json keeps the last."""
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"{max(names, key=names.count)} occurs twice")
    return dict(pairs)


def _read_shards(index: Path) -> dict[str, Any]:
    """Read all files of an index; each must have exactly the tensors that the index says."""
    places = weight_map(index)
    content: dict[str, Any] = {}
    for file in sorted(set(places.values())):
        path = index.with_name(file)
        if not path.is_file():
            raise FileNotFoundError(f"{index} names {file}, which is not beside it")
        state, _ = read_file(path)
        expected = {name for name in places if places[name] == file}
        if wrong := sorted(map(str, expected ^ state.keys())):
            raise ValueError(f"only one of {path} and {index.name} has {first(wrong)}")
        content |= state
    return content
