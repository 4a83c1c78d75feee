"""Files of rows, Parquet and Arrow: find those of a folder, and open one."""

import json
import re
import reprlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from beit.data.folders.listing import say_once
from beit.data.splits import Split, choose_split, is_split
from beit.data.stores.remote import RemoteBlob

_brief = reprlib.Repr()  # of values of others in messages
ENDINGS = (".parquet", ".arrow")
RowFile = Path | RemoteBlob


class Rows(NamedTuple):
    """An open file of rows, which are read by groups.

    Attributes:
        schema: pyarrow schema of the columns
        counts: rows of each group
        sizes: bytes of each group, which is read whole for any of its rows; 0 if mapped into memory
        column: returns a column of some groups, by their numbers and its name
        class_names: of the numbers in a column of labels, by column
    """

    schema: Any
    counts: list[int]
    sizes: list[int]
    column: Callable[[Sequence[int], str], Any]
    class_names: dict[str, list[str]]


def place(row: int) -> str:
    """Name a row in messages, counted from 1."""
    return f"row {row + 1}"


def open_rows(path: RowFile) -> Rows:
    """Open a Parquet file, or an Arrow file (stream or random access), mapped into memory."""
    is_parquet = _is_parquet(path)
    if not (is_parquet or isinstance(path, Path)):
        raise ValueError(f"{path}: a remote Arrow file is not read; download it, or use Parquet")
    with _readable(path):
        rows = _open_parquet(path) if is_parquet else _open_arrow(path)
        names = rows.schema.names
        for field in rows.schema:
            _decode_names(field.type)

    def column(groups: Sequence[int], name: str) -> Any:
        with _readable(path):
            values = rows.column(groups, name)
        expected = sum(rows.counts[group] for group in groups)
        if len(values) != expected:
            raise ValueError(
                f"{path}: damaged: column {name!r} has {len(values)} values in {expected} rows"
            )
        return values

    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f"{path}: several columns are named {twice[0]!r}; rename all but one")
    return rows._replace(column=column)


def _is_parquet(file: RowFile) -> bool:
    return file.name.lower().endswith(".parquet")


def _decode_names(kind: Any) -> None:
    """Decode the names of the fields of a struct; UnicodeDecodeError if they are no UTF-8."""
    from pyarrow import types

    if types.is_struct(kind):
        for field in kind:
            str(field.name)
            _decode_names(field.type)


@contextmanager
def _readable(path: RowFile) -> Iterator[None]:
    """Raise ValueError that names the file where pyarrow finds it damaged."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        of_disk = getattr(error, "errno", None) is not None  # Arrow's own have no number
        if of_disk or isinstance(error, ConnectionError):
            raise
        pointer = _begin(path).startswith(b"version https://git")
        reason = "a pointer of Git LFS; run git lfs pull" if pointer else str(error)
        kind = "Parquet" if _is_parquet(path) else "Arrow"
        raise ValueError(f"{path}: not a readable {kind} file: {reason}") from error


def _begin(file: RowFile) -> bytes:
    if isinstance(file, Path):
        with file.open("rb") as opened:
            return opened.read(20)
    return file.read(0, min(20, file.size))


def _open_parquet(path: RowFile) -> Rows:
    from pyarrow import parquet

    file = parquet.ParquetFile(path if isinstance(path, Path) else path.open())
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    return Rows(
        file.schema_arrow,
        [group.num_rows for group in groups],
        [group.total_byte_size for group in groups],
        lambda groups, name: file.read_row_groups(groups, [name], use_threads=False).column(0),
        _class_names(file.schema_arrow, path),
    )


def _open_arrow(path: RowFile) -> Rows:
    import pyarrow
    from pyarrow import ipc

    mapped = pyarrow.memory_map(str(path))
    if mapped.read(6) == b"ARROW1":
        file = ipc.open_file(mapped)
        schema, batch, number = file.schema, file.get_batch, file.num_record_batches
    else:
        mapped.seek(0)
        stream = ipc.open_stream(mapped)
        batches = list(stream)
        schema, batch, number = stream.schema, batches.__getitem__, len(batches)

    def column(groups: Sequence[int], name: str) -> Any:
        parts = [batch(group).column(name) for group in groups]
        for part in parts:
            part.validate(full=True)  # else forged offsets would read other memory, or abort
        return pyarrow.chunked_array(parts, schema.field(name).type)

    counts = [batch(group).num_rows for group in range(number)]
    return Rows(schema, counts, [0] * number, column, _class_names(schema, path))


def _class_names(schema: Any, path: RowFile) -> dict[str, list[str]]:
    """Read the class names that the `datasets` library writes to the schema, or beside the file."""
    try:
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {})
        features = about.get("features") or _features_beside(path)
        found = {column: f.get("names") for column, f in features.items() if isinstance(f, dict)}
    except (AttributeError, ValueError, RecursionError):
        return {}
    lists = {column: names for column, names in found.items() if isinstance(names, list) and names}
    return {column: list(map(str, names)) for column, names in lists.items()}


def _features_beside(path: RowFile) -> Any:
    beside = path.with_name("dataset_info.json") if isinstance(path, Path) else None
    return _read(beside, "features") if beside and beside.is_file() else {}


def row_files(folder: Path, split: Split | None) -> list[Path]:
    """List the files of rows of a folder; none if it has something else.

    They lie in the folder, in `data` (a repository of the hub), or were written by save_to_disk of
    `datasets`. Of several splits, which names of files and folders tell, one is chosen.

    Raises:
        ValueError: the files belong to several splits, and `split` is None or not among them.
    """
    if (folder / "dataset_dict.json").is_file():
        about = folder / "dataset_dict.json"
        splits = _read(about, "splits")
        if not (isinstance(splits, list) and splits and all(map(_is_name, splits))):
            raise ValueError(f"{about}: 'splits' is {splits!r}; expected a list of names")
        folder = folder / chosen(splits, split, folder, str(folder / splits[0]))
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        return _saved_files(folder)
    for place, ending in ((folder, ".parquet"), (folder / "data", ".parquet"), (folder, ".arrow")):
        found = place.iterdir() if place.is_dir() else ()
        files = sorted(file for file in found if file.name.lower().endswith(ending))
        # Tables beside images, see `label_tables`, and what `datasets` keeps for itself.
        files = [f for f in files if not re.match(r"metadata\.|cache-|tmp|indices\.", f.name)]
        if files:
            return one_split(files, split, folder)
    return []


def nested_row_files(folder: Path, split: Split | None) -> list[Path]:
    """List the Parquet files one and two levels below a folder, as converted by the hub.

    Raises ValueError as `row_files`, and if they belong to several sets.
    """
    files = sorted(file for depth in ("*/*", "*/*/*") for file in folder.glob(depth))
    files = [file for file in files if file.suffix.lower() == ".parquet"]
    above = [file.relative_to(folder).parent.parts for file in files]
    sets = {"/".join(part for part in parts if not is_split(part)) for parts in above}
    if len(sets) > 1:
        raise ValueError(
            f"{folder} has Parquet files of several sets, {', '.join(sorted(sets))}; give one of "
            f"them, as in '{folder / min(sets)}'"
        )
    return one_split(files, split, folder) if files else []


def one_split(files: list[Path], split: Split | None, folder: Path) -> list[Path]:
    """Return the files of one split, which names of files or folders tell; all if none do."""
    example = f"{files[0].parent / files[0].stem.split('-')[0]}*{files[0].suffix}"
    splits = by_split(files, folder)
    return splits[chosen([*splits], split, folder, example)]


def by_split(files: list[Path], folder: Path) -> dict[str, list[Path]]:
    """Group the files below a folder by the word of a split in their names, or `others`."""
    splits = dict[str, list[Path]]()
    for file in files:
        words = [*re.split(r"[-_.\d]+", file.stem), *file.relative_to(folder).parent.parts]
        name = next((word.lower() for word in words if is_split(word)), "others")
        splits.setdefault(name, []).append(file)
    return splits


def chosen(names: list[str], split: Split | None, where: str | Path, example: str) -> str:
    """Choose one of the splits of a set; images for training are never taken for testing."""
    if len(names) == 1 and not (split == "test" and names[0].startswith("train")):
        return names[0]
    if split is None:
        raise ValueError(
            f"{where}: contains files of several sets ({', '.join(sorted(names))}); name one of "
            f"them, as in '{example}'"
        )
    name = choose_split(names, split, str(where))
    say_once(f"{where}: images of the split {name}; it has {', '.join(names)}")
    return name


def _saved_files(folder: Path) -> list[Path]:
    """List the files of a data set that `datasets` saved to a folder."""
    state = folder / "state.json"
    if any(_read(state, key, []) for key in ("_indices_files", "_indices_data_files")):
        raise ValueError(
            f"{folder} holds a selection of its rows, which is not read; load it with `datasets` "
            "and save what flatten_indices() returns"
        )
    files = _read(state, "_data_files")
    listed = isinstance(files, list) and all(isinstance(file, dict) for file in files)
    names = [file.get("filename") for file in files] if listed else []
    if not names or not all(map(_is_name, names)):
        raise ValueError(f"{state}: '_data_files' is {_brief.repr(files)}; expected names of files")
    return [folder / name for name in names]


def _is_name(value: Any) -> bool:
    """Whether a value names something in a folder, and nothing outside of it."""
    return isinstance(value, str) and value not in ("", ".", "..") and not set(value) & {*"/\\\0"}


def _read(path: Path, key: str, default: Any = None) -> Any:
    """Read a value from a file of `datasets`."""
    try:
        value = json.loads(path.read_text("utf-8")).get(key, default)
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: not readable as JSON: {error}") from error
    if value is None:
        raise ValueError(f"{path}: has no {key!r}; expected a folder that `datasets` saved")
    return value
