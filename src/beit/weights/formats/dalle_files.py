"""Read DALL-E's tensors from its files: modules that torch pickled whole, encoder.pkl, decoder.pkl.

Names in the result are the published ones under `encoder.` and `decoder.`.
"""

import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from beit.run.settings import first
from beit.weights.file import read_safetensors
from beit.weights.formats.containers import named_tensors
from beit.weights.safe_pickle import records
from beit.weights.safe_pickle.files import PICKLE, ZIP, read_checkpoint

ENCODER, DECODER = "encoder", "decoder"
FILES = ("encoder.pkl", "decoder.pkl")
SEPARATORS = (".", "/")  # between the name of a part and the published name
STEM = "blocks.input.w"
STEM_KERNEL = 7  # of the encoder; the decoder's is 1

# Prefixes of the classes in pickled modules, besides tensors and plain containers.
CLASSES = ("dall_e.", "torch.nn.modules.", "torch.device", "functools.partial")
PACKAGE = b"dall_e."
HEAD_BYTES = 4096  # of a pickle: the class of a pickled module comes first
# Torch before 1.6 wrote this number, a version and facts about the machine, then the object.
LEGACY_MAGIC, LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001
COUNT = struct.Struct("<q")  # number of elements, before the bytes of each storage


def read_dalle_folder(folder: Path) -> dict[str, Tensor] | None:
    """Read a folder with encoder.pkl and optionally decoder.pkl; None without encoder.pkl."""
    encoder, decoder = (folder / name for name in FILES)
    if not encoder.is_file():
        return None
    tensors = by_part(_read_part(encoder))
    return with_decoder(tensors, decoder, str(encoder)) if decoder.is_file() else tensors


def by_part(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Prefix each name with `encoder.` or `decoder.`; files of one part have no prefix."""
    if STEM in state:
        is_encoder = state[STEM].shape[-1:] == (STEM_KERNEL,)
        return {f"{ENCODER if is_encoder else DECODER}.{name}": state[name] for name in state}
    tensors = {}
    for name, tensor in state.items():
        for part in (ENCODER, DECODER):
            if name.startswith(tuple(part + mark for mark in SEPARATORS)):
                name = f"{part}.{name[len(part) + 1 :]}"
        tensors[name] = tensor
    return tensors


def with_decoder(tensors: Mapping[str, Tensor], path: Path, origin: str) -> dict[str, Tensor]:
    """Add the decoder in another file to the tensors of `origin`."""
    if f"{DECODER}.{STEM}" in tensors:
        raise ValueError(f"{origin} has a decoder already; leave decoder={path} out")
    added = by_part(_read_part(path))
    if f"{DECODER}.{STEM}" not in added or f"{ENCODER}.{STEM}" in added:
        raise ValueError(f"{path} is not DALL-E's decoder; got {first(list(added)) or 'nothing'}")
    return {**tensors, **added}


def read_pickled_module(path: str | Path) -> dict[str, Tensor] | None:
    """Read the tensors of a pickled module of DALL-E's package.

    The package is not needed and no code is run: objects become inert records, and any name besides
    those of the package, of torch's modules and of tensors is refused.

    Returns:
        Tensors by dotted name, as in a state dict; None if the file is something else

    Raises:
        ValueError: it is such a module, and is damaged or names something else. Nothing was
            executed.
    """
    path = Path(path)
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    try:
        if head.startswith(ZIP):
            return _read_zip(path)
        if head.startswith(PICKLE) and PACKAGE in head:
            return _read_legacy(path.read_bytes())
    except records.UNSOUND as error:
        raise ValueError(
            f"{path} is not a sound pickled module of DALL-E: {error}. Nothing of it was executed"
        ) from error
    return None


def _read_part(path: Path) -> Mapping[str, Tensor]:
    """Read the tensors of one part, from a pickled module or from tensors by name."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; expected DALL-E's {' or '.join(FILES)}")
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    pickled = read_pickled_module(path)
    return named_tensors(read_checkpoint(path), str(path)) if pickled is None else pickled


def _read_zip(path: Path) -> dict[str, Tensor] | None:
    """Read the format of torch 1.6 and later."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        root = records.zip_root(archive)
        if root is None:
            return None
        with archive.open(root + "data.pkl") as pickled:
            if PACKAGE not in pickled.read(HEAD_BYTES):
                return None
        data = records.zip_read(archive, root + "data.pkl")
        module = records.unpickle(data, classes=CLASSES).value
        return _tensors(module, records.zip_storage(archive, root))


def _read_legacy(data: bytes) -> dict[str, Tensor] | None:
    """Read the format of older torch: five pickles, then the elements of each storage."""
    magic, end, _ = records.unpickle(data)
    version, end, _ = records.unpickle(data, end)
    _, end, _ = records.unpickle(data, end)  # about the machine
    if (magic, version) != (LEGACY_MAGIC, LEGACY_VERSION):
        return None
    module, end, storages = records.unpickle(data, end, classes=CLASSES)
    keys, end, _ = records.unpickle(data, end)
    slices = {}
    for key in keys:
        (length,) = COUNT.unpack_from(data, end)
        start, storage = end + COUNT.size, storages[key]
        end = start + storage.num_bytes
        if length != storage.length or end > len(data):
            raise ValueError(f"storage {key} has {length} elements, expected {storage.length}")
        slices[key] = slice(start, end)
    return _tensors(module, lambda storage: data[slices[storage.key]])


def _tensors(module: object, read: Callable[[records.Storage], bytes]) -> dict[str, Tensor] | None:
    """Create the tensors of a pickled module by dotted name; None if it is something else."""
    if not isinstance(module, records.Record):
        return None
    return records.tensors_of(records.views(module, _members), read)


def _members(module: records.Record) -> dict[str, Any]:
    """Return the parameters, buffers and inner modules of a pickled module by name."""
    fields = vars(module)
    members: dict[str, Any] = {}
    for kind in ("_parameters", "_buffers", "_modules"):
        members.update(fields.get(kind) or {})
    return members
