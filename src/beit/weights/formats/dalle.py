"""DALL-E's image tokenizer: its published tensors, and the files with them.

The files, encoder.pkl and decoder.pkl, are modules that torch pickled whole. Their tensors are
called by their published names under `encoder.` and `decoder.`.
"""

import logging
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from beit.nn.dalle import GROUPS, DalleConfig, DalleTokenizer
from beit.run.settings import first
from beit.weights.assemble import assemble
from beit.weights.file import read_safetensors, size_pair
from beit.weights.formats.containers import named_tensors
from beit.weights.formats.published_config import check_overrides, count_blocks, shape_of
from beit.weights.mistaken import PICKLE, ZIP
from beit.weights.safe_pickle import records
from beit.weights.safe_pickle.files import read_checkpoint

logger = logging.getLogger(__name__)

ENCODER, DECODER = "encoder", "decoder"
FILES = ("encoder.pkl", "decoder.pkl")
SEPARATORS = (".", "/")  # between the name of a part and the published name
STEM = "blocks.input.w"
STEM_KERNEL = 7  # of the encoder; the decoder's is 1
OVERRIDES = ("image_size", "decoder")

# Prefixes of the classes in pickled modules, besides tensors and plain containers.
CLASSES = ("dall_e.", "torch.nn.modules.", "torch.device", "functools.partial")
PACKAGE = b"dall_e."
HEAD_BYTES = 4096  # of a pickle: the class of a pickled module comes first
# Torch before 1.6 wrote this number, a version and facts about the machine, then the object.
LEGACY_MAGIC, LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001
COUNT = struct.Struct("<q")  # number of elements, before the bytes of each storage


def recognises(tensors: Mapping[str, Any]) -> bool:
    """Whether the names are those of DALL-E's encoder, its decoder, or both."""
    prefixes = [f"{part}{mark}" for part in (ENCODER, DECODER) for mark in SEPARATORS]
    return any(f"{prefix}{STEM}" in tensors for prefix in ("", *prefixes))


def from_dalle(
    state: Mapping[str, Tensor], *, origin: str = "the state", **overrides: Any
) -> DalleTokenizer:
    """Build the tokenizer from DALL-E's published tensors, in eval mode.

    Args:
        state: the encoder's tensors by published name, or those of both parts under `encoder.` and
            `decoder.`; without the decoder the tokenizer only encodes
        overrides: `image_size` (default: 112 x 112, as in BEiT v1; images of every size that fits
            can be encoded), and `decoder`, the path of the decoder if it is in another file
    """
    check_overrides(overrides, OVERRIDES, origin)
    tensors = by_part(state)
    decoder = overrides.get("decoder")
    if decoder is not None:
        tensors = with_decoder(tensors, Path(decoder), origin)
    if f"{ENCODER}.{STEM}" not in tensors:
        found = "its decoder alone" if recognises(state) else first(list(state)) or "nothing"
        raise ValueError(
            f"{origin} does not hold DALL-E's encoder, which a tokenizer needs, but {found}; give "
            f"{FILES[0]}, or the folder with {' and '.join(FILES)}"
        )
    has_decoder = f"{DECODER}.{STEM}" in tensors
    if has_decoder:
        code_width = shape_of(tensors, f"{DECODER}.{STEM}", 4, origin)[0]
    else:
        code_width = DalleConfig.code_width
        logger.info("%s: DALL-E's encoder alone, which cannot decode images", origin)
    blocks_per_group = count_blocks(tensors, f"{ENCODER}.blocks.group_1.")
    num_codes = shape_of(tensors, f"{ENCODER}.blocks.output.conv.w", 4, origin)[0]
    width = shape_of(tensors, f"{ENCODER}.{STEM}", 4, origin)[0]
    size = size_pair(overrides.get("image_size", DalleConfig.image_size))
    try:
        config = DalleConfig(size, num_codes, width, blocks_per_group, code_width, has_decoder)
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from error
    ours = {theirs: ours for ours, theirs in names(blocks_per_group).items()}
    renamed = {ours.get(name, f"{name} (published name)"): tensors[name] for name in tensors}
    return assemble(DalleTokenizer, config, renamed, origin)


def to_dalle(model: DalleTokenizer) -> dict[str, Tensor]:
    """Return the model's tensors by published name: the inverse of `from_dalle`, without copies."""
    published = names(model.config.blocks_per_group)
    return {published[name]: tensor for name, tensor in model.state_dict().items()}


def names(blocks_per_group: int) -> dict[str, str]:
    """Return the table of names, ours to published; not every block has the shortcut."""
    rows = {"stem": "blocks.input", "head": "blocks.output.conv"}
    for group in range(len(GROUPS)):
        for block in range(blocks_per_group):
            ours, theirs = f"groups.{group}.{block}", f"blocks.group_{group + 1}.block_{block + 1}"
            rows[f"{ours}.shortcut"] = f"{theirs}.id_path"
            for conv in range(4):
                rows[f"{ours}.convs.{conv}"] = f"{theirs}.res_path.conv_{conv + 1}"
    return {
        f"{part}.{ours}.{kind}": f"{part}.{theirs}.{kind[0]}"
        for part in (ENCODER, DECODER)
        for ours, theirs in rows.items()
        for kind in ("weight", "bias")
    }


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

    Returns: tensors by dotted name, as in a state dict; None if the file is something else
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
        if not records.unsound(error):
            raise
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
    kinds = (vars(module).get(kind) for kind in ("_parameters", "_buffers", "_modules"))
    return {name: value for members in kinds for name, value in (members or {}).items()}
