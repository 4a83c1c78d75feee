"""Changes to small valid files: of bytes, and of what containers hold, with their checksums right.

All of them are drawn from one `random.Random`, so that its seed stands for the changed file.
"""

import gzip
import io
import json
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import yaml

NUMBERS = (
    0,
    1,
    2,
    127,
    128,
    255,
    256,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0xFFFFFFFF,
    2**63 - 1,
    2**64 - 1,
)
TEXTS = (
    *(b"", b"\0", b"\xff\xfe", b"-1", b"0", b"1e999", b"nan", b"99999999999999999999", b"../../x"),
    *(b"/etc/passwd", b"null", b"true", b"[", b"{", b'"', b"\n", b",", b"\xed\xa0\x80", b"%s" * 9),
)
VALUES = (
    *(None, True, False, 0, -1, 1, 2, 3.5, 2**31, 2**63, 10**30, -0.0, 1e308, float("nan")),
    *(float("inf"), "", "x", "x" * 500, "../../x", "/dev/zero", "\0", "é\u202e", "nan"),
    *([], {}, [[]], [None], [0, 0], [1, 2, 3], [10**9, 10**9], {"": None}, {"a": {"b": [1]}}),
)


def changed(name: str, data: bytes, rng: random.Random) -> bytes:
    """Return a changed file; its name tells what it holds."""
    for ending, change in INSIDE.items():
        if name.endswith(ending) and rng.random() < 0.6:
            return change(data, rng)
    return of_bytes(data, rng)


def of_bytes(data: bytes, rng: random.Random) -> bytes:
    """Change, remove, repeat or insert some bytes, one to six times."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        size = len(content)
        # Most formats begin with what describes the rest.
        place = rng.randrange(min(size, rng.choice((16, 64, 512, size or 1))) or 1)
        length = rng.choice((1, 1, 2, 4, 8, 16, 64))
        match rng.randrange(8):
            case 0 if size:
                content[place % size] ^= 1 << rng.randrange(8)
            case 1 if size:
                content[place % size] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 2:
                number, kind = rng.choice(NUMBERS), rng.choice("BHIQ")
                number %= 1 << 8 * struct.calcsize(f"={kind}")
                packed = struct.pack(rng.choice("<>") + kind, number)
                content[place : place + len(packed)] = packed
            case 3:
                del content[place : place + length]
            case 4:
                content[place:place] = content[place : place + length]
            case 5:
                content[place : place + rng.choice((0, length))] = rng.choice(TEXTS)
            case 6 if rng.random() < 0.5:
                del content[rng.randrange(size + 1) :]
            case _:
                other = rng.randrange(size + 1)
                content[place : place + length] = content[other : other + length]
    return bytes(content)


def of_tree(tree: Any, rng: random.Random) -> Any:
    """Replace, remove, repeat or rename a value in nested lists and dicts, one to three times."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        places: list[tuple[Any, Any]] = []
        waiting = [tree]
        while waiting:
            value = waiting.pop()
            keys = list(value) if isinstance(value, dict) else range(len(value))
            places += [(value, key) for key in keys]
            waiting += [value[key] for key in keys if isinstance(value[key], list | dict)]
        if not places or rng.random() < 0.03:
            return deepcopy(rng.choice(VALUES))
        parent, key = rng.choice(places)
        match rng.randrange(6):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, dict):
                other = rng.choice(("", "x", "x.y", f"{key}.{key}", str(key).upper()))
                parent[other] = deepcopy(parent[key])
            case 1:
                parent.insert(key, deepcopy(parent[key]))
            case 2:  # nested deeply
                for _ in range(rng.choice((1, 3, 40))):
                    parent[key] = [parent[key]] if rng.random() < 0.5 else {"x": parent[key]}
            case _:
                parent[key] = deepcopy(rng.choice(VALUES))
    return tree


def of_json(data: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.01:
        return rng.choice((b"[", b'{"x":')) * 100_000
    return json.dumps(of_tree(json.loads(data), rng), ensure_ascii=False).encode(
        "utf-8", "surrogatepass"
    )


def of_lines(data: bytes, rng: random.Random) -> bytes:
    lines = data.splitlines()
    number = rng.randrange(len(lines))
    lines[number] = of_json(lines[number], rng)
    return b"\n".join(lines) + b"\n"


DUMPER = yaml.CSafeDumper


def of_yaml(data: bytes, rng: random.Random) -> bytes:
    tree = of_tree(yaml.load(data, yaml.CSafeLoader), rng)
    if rng.random() < 0.01:
        return b"[" * 500
    if rng.random() < 0.05:  # each level has the one before it twice
        bomb = "".join(f"b{n}: &b{n} [*b{n - 1}, *b{n - 1}]\n" for n in range(1, 40))
        return b"b0: &b0 [x, x]\n" + bomb.encode() + data
    return yaml.dump(tree, Dumper=DUMPER, allow_unicode=True).encode("utf-8", "surrogatepass")


def of_gzip(data: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.02:
        return gzip.compress(bytes(1 << 20), 1) * 2048  # 2 GiB in 9 MB
    return gzip.compress(of_json(gzip.decompress(data), rng), 1)


def of_zip(data: bytes, rng: random.Random) -> bytes:
    """Change a member, its name or how it is stored; checksums are right."""
    output = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(output, "w") as written:
        members = archive.infolist()
        number, act = rng.randrange(len(members)), rng.random()
        for place, member in enumerate(members):
            content, name, method = archive.read(member), member.filename, member.compress_type
            if place == number:
                if act < 0.8:
                    content = changed(name, content, rng)
                elif act < 0.85:
                    name = rng.choice(("../" + name, "/" + name, name + "/", "x", name.upper()))
                elif act < 0.9:
                    content, method = bytes(1 << rng.choice((10, 20, 27))), zipfile.ZIP_DEFLATED
                elif act < 0.95:
                    method = zipfile.ZIP_DEFLATED
                else:
                    continue
            written.writestr(zipfile.ZipInfo(name), content, method, 1)
    return output.getvalue()


def of_tar(data: bytes, rng: random.Random) -> bytes:
    """Change a member, its name or its kind; checksums are right."""
    output = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = [(member, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]
    number, act = rng.randrange(len(members)), rng.random()
    with tarfile.open(fileobj=output, mode="w") as written:
        for place, (member, content) in enumerate(members):
            if place == number:
                if act < 0.7:
                    content = changed(member.name, content, rng)
                elif act < 0.8:
                    other = rng.choice(members)[0].name
                    member.name = rng.choice(
                        (f"../{other}", f"/{other}", other, "x", "\0", "é" * 200)
                    )
                elif act < 0.9:
                    member.type = rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE))
                    member.linkname = rng.choice(members)[0].name
                else:
                    continue
            member.size = len(content)
            written.addfile(member, io.BytesIO(content))
    return output.getvalue()


def of_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Change the header, or our description of the model in it."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    if "beit" in header.get("__metadata__", {}) and rng.random() < 0.7:
        about = of_json(header["__metadata__"]["beit"].encode(), rng)
        header["__metadata__"]["beit"] = about.decode("utf-8", "replace")
    else:
        header = of_tree(header, rng)
    text = json.dumps(header).encode("utf-8", "replace")
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def of_png(data: bytes, rng: random.Random) -> bytes:
    """Change the content of a chunk, or remove or repeat it."""
    chunks, place = [], 8
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    number = rng.randrange(len(chunks))
    kind, content = chunks[number]
    match rng.randrange(5):
        case 0:
            del chunks[number]
        case 1:
            chunks.insert(number, chunks[number])
        case _:
            chunks[number] = kind, of_bytes(content, rng)
    return data[:8] + b"".join(
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


INSIDE: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": of_json,
    ".jsonl": of_lines,
    ".yaml": of_yaml,
    ".gz": of_gzip,
    ".safetensors": of_safetensors,
    ".png": of_png,
    ".tar": of_tar,
    "__beit__": of_json,
    **dict.fromkeys((".zip", ".npz", ".pt", "new.pth", "script.pt"), of_zip),
}
