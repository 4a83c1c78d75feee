"""What fuzzing and the audit of docs/security.md found: each file here did more than be refused."""

import gzip
import io
import json
import struct
import sys
import tarfile
import warnings
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import ipc, parquet
from safetensors.torch import save_file

from beit.command.presets import read_yaml
from beit.comparison.plan import unfold
from beit.comparison.records import _kept
from beit.comparison.runs import sample_pictures
from beit.data.pixels.decoding import decode
from beit.data.shrinking import ShrunkImages
from beit.data.source import UnreadableImage
from beit.data.sources import open_source
from beit.data.tabular.row_files import open_rows
from beit.packing.record import Finished, Record
from beit.pretraining import pretrain
from beit.rows.files import read_about, read_table
from beit.rows.part import read_array
from beit.run import checkpoint, records
from beit.run.directory import RunDirectory
from beit.run.images import check_images
from beit.run.lock import releasing
from beit.run.resume import open_run
from beit.segmentation.label_classes import read_label_classes
from beit.segmentation.label_files import read_text
from beit.weights.file import description
from beit.weights.formats.containers import read_tensors
from beit.weights.formats.dalle import read_pickled_module
from beit.weights.formats.published import to_published
from beit.weights.open import load
from beit.weights.safe_pickle.files import read_checkpoint

sys.path.insert(0, str(Path(__file__).parent))
from readers import Holder, mim, shards_of_pack

DEEP = "[" * 100_000
BOMB = "b0: &b0 [x, x]\n" + "".join(f"b{n}: &b{n} [*b{n - 1}, *b{n - 1}]\n" for n in range(1, 60))


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", {"seed": 3}, {"verb": "pretrain"})


def displaced(path: Path) -> Path:
    """Let a zip say that its directory lies behind its end: members lie before its start."""
    data = bytearray(path.read_bytes())
    for mark, at, kind in ((b"PK\5\6", 16, "<I"), (b"PK\6\6", 48, "<Q")):
        if (place := data.rfind(mark)) >= 0:
            (offset,) = struct.unpack_from(kind, data, place + at)
            struct.pack_into(kind, data, place + at, offset + 10_000)
    path.write_bytes(data)
    return path


def save_script(path: Path) -> None:
    """Save a module as TorchScript."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(Holder(), torch.zeros(1, 2)), path)


# ── weights ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"config"', f'"x": {DEEP}, "config"'),
        ('"init_bound": 0.02', '"init_bound": NaN'),
        ('"num_codes": 5', '"num_codes": 9223372036854775808'),
    ],
)
def test_numbers_that_no_model_can_have(old: str, new: str, tmp_path: Path) -> None:
    model = mim()
    about = description(model)
    assert old in about
    file = tmp_path / "model.safetensors"
    save_file(model.state_dict(), file, {"beit": about.replace(old, new)})
    with pytest.raises(ValueError, match=r"model.safetensors"):
        load(file)


def test_a_small_file_cannot_claim_a_large_model(tmp_path: Path) -> None:
    """By one element that is seen many times over, and by tensors without elements."""
    state = to_published(mim())
    name = "lm_head.weight"
    wide = state[name].shape[1]
    for forged in (torch.zeros(1, 1).expand(2**22, wide), torch.empty(2**22, wide, device="meta")):
        file = tmp_path / "x.pth"
        bias = forged[:, 0]
        torch.save({"model": {**state, name: forged, "lm_head.bias": bias}}, file)
        assert file.stat().st_size < 200_000
        with pytest.raises(
            ValueError, match=r"x.pth: (its tensors claim|.*expected a dense tensor)"
        ):
            load(file, early_layers=1)
        with pytest.raises(ValueError, match=r"x.pth"):
            read_tensors(file)


def test_tied_weights_are_no_forgery(tmp_path: Path) -> None:
    state = to_published(mim())
    whole = torch.cat([tensor.flatten() for tensor in state.values()])
    parts = torch.split(whole, [tensor.numel() for tensor in state.values()])
    shared = {n: p.view(t.shape) for (n, t), p in zip(state.items(), parts, strict=True)}
    torch.save({"model": shared}, tmp_path / "x.pth")
    load(tmp_path / "x.pth", early_layers=1)


def test_a_storage_that_the_file_does_not_list(tmp_path: Path) -> None:
    file = tmp_path / "x.pth"
    torch.save({"a": torch.ones(3)}, file, _use_new_zipfile_serialization=False)
    data = bytearray(file.read_bytes())
    place = data.rfind(b"X\x0e") if b"X\x0e" in data else data.rfind(b"X")
    data[place + 5] ^= 1  # a digit of its key in the list
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"x.pth is"):
        read_checkpoint(file)


@pytest.mark.parametrize("read", [read_checkpoint, read_tensors, read_pickled_module])
def test_archives_whose_members_lie_before_their_start(read, tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    if read is read_tensors:
        save_script(file)
    else:
        torch.save({"a": torch.ones(3)}, file)
    with pytest.raises(ValueError, match=r"x.pt"):
        read(displaced(file))


@pytest.mark.parametrize(
    ("mark", "at", "expected"),
    [
        (b"PK\6\7", 16, "span multiple disks"),  # number of disks
        (b"PK\1\2", 20, "claims 2000000000 bytes"),  # size of the first member
    ],
)
def test_scripts_whose_directory_is_forged(mark, at, expected, tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    save_script(file)
    data = bytearray(file.read_bytes())
    struct.pack_into("<I", data, data.find(mark) + at, 2_000_000_000)
    file.write_bytes(data)
    with pytest.raises(ValueError, match=rf"x.pt is not a sound .*{expected}"):
        read_tensors(file)


# ── runs ────────────────────────────────────────────────────────────────────────────────────────


def test_checkpoints_that_are_compressed_or_displaced(run: RunDirectory) -> None:
    file = records.save(run, 3, {"model": {"a": torch.zeros(1000)}})
    whole = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match="every checkpoint"):
        checkpoint.latest(run)
    file.write_bytes(whole)
    displaced(file)
    with pytest.raises(ValueError, match="every checkpoint"):
        checkpoint.latest(run)


def test_a_checkpoint_that_holds_something_else(run: RunDirectory) -> None:
    torch.save({"step": 3, "state": [1]}, run.checkpoints / "step-000000003.pt")
    with pytest.raises(ValueError, match="every checkpoint"):
        checkpoint.latest(run)


@pytest.mark.parametrize(
    "lists",
    [
        *([1], {"data.train": 1}, {"data.train": {"classes": []}}),
        *({"data.train": {"images": 1}}, {"data.train": {"images": "a", "classes": 3}}),
    ],
)
def test_lists_of_images_of_other_kinds(lists, run: RunDirectory) -> None:
    run.images_file.write_bytes(gzip.compress(json.dumps(lists).encode()))
    with pytest.raises(ValueError, match=r"images.json.gz is damaged"):
        check_images(run, {"data.train": open_source("shapes://3?size=8")}, False)


def test_lists_of_images_that_grow_when_unpacked(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("beit.run.images.MAX_BYTES", 1 << 16)
    run.images_file.write_bytes(gzip.compress(bytes(1 << 20)))
    with pytest.raises(ValueError, match="more than"):
        check_images(run, {"data.train": open_source("shapes://3?size=8")}, False)


def test_settings_with_aliases(run: RunDirectory) -> None:
    run.config_file.write_text(BOMB)
    with pytest.raises(ValueError, match=r"config.yaml is not valid YAML: it refers to parts"):
        run.config()


@pytest.mark.parametrize(
    "text",
    ["optim: 3", "optim: {}", "run: 1.5", "run: {output: {}}", "mask: {count: x}"],
)
def test_settings_of_other_kinds_name_the_file(text: str, run: RunDirectory) -> None:
    run.config_file.write_text(f"tokenizer: x\n{text}\n")
    with pytest.raises(ValueError, match=r"config.yaml"):
        open_run(pretrain, run.path)


def test_a_report_with_pictures_that_are_no_base64(tmp_path: Path) -> None:
    (tmp_path / "r.html").write_text('<img src="data:image/png;base64,é">')
    assert sample_pictures(tmp_path / "r.html", 4) == []


# ── settings ────────────────────────────────────────────────────────────────────────────────────


def test_yaml_that_grows_or_never_ends(tmp_path: Path) -> None:
    for name, text in (("bomb", BOMB), ("loop", "a: &a [*a]\n"), ("classes", "classes: &a [*a]\n")):
        file = tmp_path / f"{name}.yaml"
        file.write_text(text)
        for read in (read_yaml, lambda path: read_label_classes(str(path))):
            with pytest.raises(ValueError, match=rf"{name}.yaml"):
                read(file)


def test_aliases_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: &a {b: 1}\nc: *a\n")
    assert read_yaml(tmp_path / "x.yaml") == {"a": {"b": 1}, "c": {"b": 1}}


def test_class_lists_that_are_nested_deeply(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("[" * 1000)
    with pytest.raises(ValueError, match=r"x.yaml"):
        read_label_classes(str(tmp_path / "x.yaml"))


def test_a_grid_whose_fields_are_no_mapping() -> None:
    content = {
        "stages": {"tok": {"verb": "train-tokenizer"}},
        "figures": {"loss": "tok.loss"},
        "grid": {"axis": {"a": 1.5}},
    }
    with pytest.raises(ValueError, match=r"plan, grid axis 'axis': expected fields .* got 1.5"):
        unfold(content, "plan", {})


# ── images, rows, label maps ────────────────────────────────────────────────────────────────────


def test_a_tiff_whose_image_has_no_pixels() -> None:
    head = b"II*\0" + struct.pack("<I", 8)
    tags = [(256, 3, 1, 0), (257, 3, 1, 0), (258, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1)]
    tags += [(273, 4, 1, 8), (279, 4, 1, 0)]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    data = head + struct.pack("<H", len(tags)) + entries + bytes(4)
    with pytest.raises(UnreadableImage, match=r"x.tiff"):
        decode(data, "x.tiff")


def test_a_line_that_is_nested_deeply(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"image": "a.png"}\n' + DEEP)
    with pytest.raises(ValueError, match=r"x.jsonl: cannot read line 2: "):
        open_source(str(tmp_path / "x.jsonl"))


def test_a_shrunk_image_without_pixels(tmp_path: Path) -> None:
    kept, file = ShrunkImages(str(tmp_path), 1.0), tmp_path / "x"
    kept.write(file, torch.zeros(3, 0, 7, dtype=torch.uint8))
    assert kept.read(file) is None


def stream(path: Path, table: pyarrow.Table) -> Path:
    with ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)
    return path


def test_offsets_of_an_arrow_file_stay_in_its_memory(tmp_path: Path) -> None:
    """pyarrow maps the file as it is: a forged offset would read what lies beside it."""
    file = stream(tmp_path / "x.arrow", pyarrow.table({"image": [b"abcd", b"efgh"]}))
    offsets = struct.pack("<3i", 0, 4, 8)
    data = file.read_bytes()
    assert data.count(offsets) == 1
    file.write_bytes(data.replace(offsets, struct.pack("<3i", 0, 4, 1 << 30)))
    with pytest.raises(ValueError, match=r"x.arrow: not a readable Arrow file"):
        open_source(str(file)).image(1)


def test_columns_whose_names_are_no_text(tmp_path: Path) -> None:
    for name, column in (("a", [1]), ("b", [{"inner": 1}])):
        file = stream(tmp_path / f"{name}.arrow", pyarrow.table({"plain": column}))
        word = b"inner" if name == "b" else b"plain"
        file.write_bytes(file.read_bytes().replace(word, b"\xff" + word[1:]))
        with pytest.raises(ValueError, match=rf"{name}.arrow: not a readable Arrow file"):
            open_rows(file)


def test_rows_that_cannot_be_read_later_name_the_file(tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"image": [bytes(range(200))] * 50}), file)
    data = bytearray(file.read_bytes())
    data[4:40] = bytes(36)  # the first page's header
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"x.parquet: not a readable Parquet file"):
        open_source(str(file)).image(0)


def test_a_column_with_fewer_values_than_rows(tmp_path: Path) -> None:
    """A page that claims to be of another kind is passed over by pyarrow without an error."""
    file = tmp_path / "x.parquet"
    image = {"bytes": b"abcd", "path": None}
    parquet.write_table(pyarrow.table({"image": [image] * 3, "label": [0, 1, 0]}), file)
    data, errors = file.read_bytes(), set()
    for place in range(4, 64):  # the header of the first page
        file.write_bytes(data[:place] + bytes([data[place] ^ 8]) + data[place + 1 :])
        try:
            open_source(str(file)).encoded(2)
        except ValueError as error:
            assert "x.parquet" in str(error)
            errors.add(str(error).partition("parquet: ")[2])
    assert "damaged: column 'image' has 0 values in 3 rows" in errors


def test_json_beside_an_image_that_is_nested_deeply(tmp_path: Path) -> None:
    shard = tmp_path / "x.tar"
    with tarfile.open(shard, "w") as archive:
        for name, content in (("0.png", b"a"), ("0.json", DEEP.encode())):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with pytest.raises(ValueError, match=r"x.tar: 0.json: not readable as json"):
        open_source(str(shard))


def test_a_file_without_a_name_in_a_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.png", b"a")
        archive.writestr("b.png", b"b")
    forged = (tmp_path / "x.zip").read_bytes().replace(b"b.png", b"\0.png")
    (tmp_path / "x.zip").write_bytes(forged)
    assert len(open_source(str(tmp_path / "x.zip"))) == 1


@pytest.mark.parametrize(
    "name", ["../secret.arrow", "/etc/secret.arrow", "..", "", "a\\b", 3, None]
)
def test_saved_data_sets_stay_in_their_folder(name, tmp_path: Path) -> None:
    stream(tmp_path / "secret.arrow", pyarrow.table({"image": [b"x"]}))
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    (saved / "dataset_info.json").write_text("{}")
    with pytest.raises(ValueError, match=r"state.json: '_data_files' is"):
        open_source(str(saved))


def test_splits_of_a_saved_data_set_stay_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["../other"]}')
    with pytest.raises(ValueError, match=r"dataset_dict.json: 'splits' is"):
        open_source(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "reason"), [(b"\x80", "codec"), (bytes(1001), "more than 1000 bytes")]
)
def test_lists_inside_a_zip(
    content: bytes, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("beit.segmentation.label_files.MAX_LIST_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("list.txt", content)
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        with pytest.raises(ValueError, match=rf"x.zip/list.txt: not a readable text .*{reason}"):
            read_text(zipfile.Path(archive, "list.txt"))


def test_a_list_before_the_start_of_its_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("list.txt", "a")
    with zipfile.ZipFile(displaced(tmp_path / "x.zip")) as archive:
        with pytest.raises(ValueError, match=r"x.zip/list.txt: not a readable text file: "):
            read_text(zipfile.Path(archive, "list.txt"))


# ── tables of ours ──────────────────────────────────────────────────────────────────────────────


def test_damaged_tables_are_named(tmp_path: Path) -> None:
    file, other = tmp_path / "x.npz", tmp_path / "x.parquet"
    np.savez(file, index=np.arange(100))
    whole = file.read_bytes()
    parquet.write_table(pyarrow.table({"index": list(range(100))}), other)
    data = bytearray(other.read_bytes())
    data[4:30] = bytes(26)
    other.write_bytes(data)
    header = whole.replace(b"(100,)", b"(1e9,)"), whole.replace(b"(100,)", b"((((,,")
    for content in (*header, whole[:200], b"\x93NUMPY", b""):
        file.write_bytes(content)
        for read in (read_table, lambda path: read_array(path, "index")):
            with pytest.raises(ValueError, match=r"x.npz is damaged"):
                read(file)
        assert read_about(file) == {}
    with pytest.raises(ValueError, match=r"x.parquet is damaged"):
        read_table(other)


def test_arrays_that_grow_when_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beit.rows.files.MAX_UNPACKED", 1 << 16)
    np.savez_compressed(tmp_path / "x.npz", index=np.zeros(1 << 17, np.uint8))
    with pytest.raises(ValueError, match=r"x.npz is damaged \(index.npy claims"):
        read_table(tmp_path / "x.npz")


# ── shards of `beit pack`, records of ablations ─────────────────────────────────────────────────


def test_a_damaged_index_is_built_again(tmp_path: Path) -> None:
    shards = shards_of_pack(tmp_path)
    names = [open_source(str(shards)).name(index) for index in range(2)]
    [index] = shards.glob(".*.index")
    whole = index.read_bytes()
    table = ipc.open_file(pyarrow.BufferReader(whole)).read_all()
    about = table.schema.metadata[b"beit"].replace(b'"packed"', b'"pucked"')
    other = table.replace_schema_metadata({**table.schema.metadata, b"beit": about})
    index.unlink()  # it is mapped into memory
    with ipc.new_file(str(index), other.schema) as file:
        file.write_table(other)
    assert [open_source(str(shards)).name(index) for index in range(2)] == names
    assert index.read_bytes() == whole


@pytest.mark.parametrize(
    "content",
    [
        DEEP,
        '{"complete": 1, "settings": {}, "shards": [FILE]}',
        '{"complete": 1, "settings": [[1, 2]], "shards": []}',
    ],
)
def test_damaged_records_of_packing_are_named(tmp_path: Path, content: str) -> None:
    shards = shards_of_pack(tmp_path)
    shard = {**dict.fromkeys(Finished._fields, 1), "file": {}}
    (shards / "pack.json").write_text(content.replace("FILE", json.dumps(shard)))
    with pytest.raises(ValueError, match=r"pack.json cannot be read"), releasing():
        Record(shards, {})


@pytest.mark.parametrize("line", [b"\xff{}", DEEP.encode(), b'{"run": {}}', b'{"run": "a"}'])
def test_damaged_records_of_ablations_are_named(tmp_path: Path, line: bytes) -> None:
    file = tmp_path / "measured.jsonl"
    file.write_bytes(line + b"\n")
    with pytest.raises(ValueError, match=r"measured.jsonl, line 1: expected a run"):
        _kept(file)


def test_settings_of_the_seeds_are_valid() -> None:
    """The readers' own files: a change of Config shows here, not as a fuzzing run without end."""
    assert asdict(mim().config)
