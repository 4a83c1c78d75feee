import io
import json
import os
import tarfile

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import ipc

from beit.data.source import UnreadableImage
from beit.data.sources import open_source


def jpeg(level):
    buffer = io.BytesIO()
    Image.new("RGB", (9, 7), (level, 40, 90)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a tar: bytes by name, in order."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))

    def written(name, members, form=tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / name, "w", format=form) as tar:
            for member, data in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return tmp_path / name

    return written


def samples(first, count, **beside):
    """Returns members of `count` samples, of which each has these files beside its image."""
    members = {}
    for number in range(first, first + count):
        for ending, content in {"jpg": jpeg(20 * number), **beside}.items():
            data = content(number) if callable(content) else content
            members[f"{number:04}.{ending}"] = data
    return members


def names(source):
    return [source.name(index) for index in range(len(source))]


def reds(source):
    return [round(int(source.image(index)[0, 0, 0]) / 20) for index in range(len(source))]


# ── images and names ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_images_come_in_the_order_of_names_whatever_the_form_and_names(write, form):
    long = f"{'a' * 90}/{'b' * 90}.jpg"
    write("x.tar", {"./c.jpg": jpeg(40), long: jpeg(20), "./a/é.jpg": jpeg(0)}, form)
    path = write("x.tar", {"./c.jpg": jpeg(40), long: jpeg(20), "./a/é.jpg": jpeg(0)}, form)
    source = open_source(str(path))
    assert names(source) == ["a/é.jpg", long, "c.jpg"]
    assert reds(source) == [0, 1, 2]


def test_the_last_of_two_members_of_one_name_counts_and_links_are_followed(write):
    path = write("x.tar", {"d/a.jpg": jpeg(0)})
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo("d/a.jpg")
        info.size = len(jpeg(60))
        tar.addfile(info, io.BytesIO(jpeg(60)))
        for name, kind, target in (
            ("d/hard.jpg", tarfile.LNKTYPE, "d/a.jpg"),
            ("e/soft.jpg", tarfile.SYMTYPE, "../d/a.jpg"),
            ("e/lost.jpg", tarfile.SYMTYPE, "/nowhere.jpg"),
        ):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            tar.addfile(link)
    source = open_source(str(path))
    assert names(source) == ["d/a.jpg", "d/hard.jpg", "e/soft.jpg"] and reds(source) == [3, 3, 3]


def test_names_and_labels_need_not_be_utf_8(write):
    name = os.fsdecode(b"\xe9.\xff.jpg")
    source = open_source(str(write("x.tar", {name: jpeg(20), "a.json": b"{}"})))
    assert names(source) == [name] and reds(source) == [1]
    about = [b'{"label": "\\ud800"}', b'{"label": 10000000000000000000000}', b'{"label": true}']
    members = {
        f"{n}.{end}": data for n in range(3) for end, data in (("jpg", jpeg(0)), ("json", about[n]))
    }
    labelled = open_source(str(write("y.tar", members)))
    assert labelled.class_names == ["10000000000000000000000", "True", "\\ud800"]
    assert labelled.labels.tolist() == [2, 0, 1]


def test_a_name_that_several_shards_have_gets_that_of_its_shard(write):
    first, second = samples(0, 2), samples(1, 2)
    paths = [write("x-0.tar", first), write("x-1.tar", second)]
    source = open_source(str(paths[0].parent / "x-{0..1}.tar"))
    assert names(source) == ["0000.jpg", "x-0.tar/0001.jpg", "x-1.tar/0001.jpg", "0002.jpg"]
    assert reds(source) == [0, 1, 1, 2]


def test_shards_of_one_split_are_taken_of_a_folder(write):
    for split, first in (("train", 0), ("val", 5)):
        for shard in range(2):
            path = write(f"x-{split}-{shard}.tar", samples(first + 2 * shard, 2, cls=b"1"))
    folder = str(path.parent)
    assert reds(open_source(folder, split="train")) == [0, 1, 2, 3]
    assert reds(open_source(folder, split="test")) == [5, 6, 7, 8]
    with pytest.raises(ValueError, match="contains files of several sets"):
        open_source(folder)


def test_masks_of_flat_shards_are_left_out(write):
    members = samples(0, 2)
    path = write("x.tar", members | {"0000_mask.png": b"", "0001_mask.png": b""})
    assert names(open_source(str(path))) == ["0000.jpg", "0001.jpg"]


# ── labels ──────────────────────────────────────────────────────────────────────────────────────


def test_labels_lie_beside_the_images(write):
    fields = [{"class": "lime", "n": 2}, {"class": "apple"}, {"class": None, "n": "x"}]

    def about(number):
        return json.dumps(fields[number] | {"box": [1, 2]}).encode()

    write("x-0.tar", samples(0, 1, json=about, cls=b" 3\n"))
    path = write("x-1.tar", samples(1, 2, json=about))
    spec = str(path.parent / "x-*.tar")
    by_number = open_source(spec)
    assert by_number.labels.tolist() == [3, -1, -1] and by_number.class_names is None
    by_name = open_source(f"{spec}?label=class")
    assert by_name.labels.tolist() == [1, 0, -1] and by_name.class_names == ["apple", "lime"]
    assert open_source(f"{path}").labels.tolist() == [0, -1]  # the only usual name
    mixed = open_source(f"{spec}?label=n")
    assert mixed.labels.tolist() == [0, -1, 1] and mixed.class_names == ["2", "x"]
    with pytest.raises(ValueError, match=r"and 1 more: 'box' holds lists .*; expected one number"):
        open_source(f"{spec}?label=box")
    with pytest.raises(ValueError, match=r"no column 'klass'; it has class, n, cls, box; did"):
        open_source(f"{spec}?label=klass")


def test_unknown_labels_among_numbers_and_text_are_no_class(write):
    about = [b'{"label": 7}', b'{"label": "NA"}', b'{"label": NaN}']
    source = open_source(str(write("x.tar", samples(0, 3, json=about.__getitem__))))
    assert source.labels.tolist() == [7, -1, -1] and source.class_names is None


def test_names_with_several_dots_find_their_own_files(write):
    members = {f"IMG.{n}.jpg": jpeg(20 * n) for n in range(2)}
    members |= {f"IMG.{n}.cls": str(n + 4).encode() for n in range(2)} | {"x.y.jpg": jpeg(40)}
    source = open_source(str(write("x.tar", members | {"x.cls": b"9"})))
    assert names(source) == ["IMG.0.jpg", "IMG.1.jpg", "x.y.jpg"]
    assert source.labels.tolist() == [4, 5, 9]


def test_a_sample_of_several_images_needs_a_choice(write):
    members = {f"{n}.{end}": jpeg(20 * n) for n in range(2) for end in ("jpg", "seg.jpg")}
    path = write("x.tar", members | {"0.cls": b"4", "1.cls": b"5"})
    with pytest.raises(ValueError, match=r"0\.jpg, 0\.seg\.jpg; choose one with \?image=ENDING"):
        open_source(str(path))
    source = open_source(f"{path}?image=jpg")
    assert names(source) == ["0.jpg", "1.jpg"] and source.labels.tolist() == [4, 5]
    with pytest.raises(ValueError, match=r"no image ends in \.png; found jpg, seg\.jpg"):
        open_source(f"{path}?image=png")


def test_what_lies_beside_and_cannot_be_read_is_named(write):
    path = write("x.tar", samples(0, 1, json=b"{"))
    with pytest.raises(ValueError, match=r"x\.tar: 0000\.json: not readable as json"):
        open_source(str(path))
    path = write("y.tar", samples(0, 1))
    with pytest.raises(ValueError, match=r"no \.cls, \.txt or \.json beside the images"):
        open_source(f"{path}?label=cls")


# ── the index ───────────────────────────────────────────────────────────────────────────────────


def test_the_index_is_built_once_and_anew_for_another_shard(write, monkeypatch):
    path = write("x.tar", samples(0, 3, cls=b"1"))
    first = open_source(str(path))
    index = path.with_name(".x.tar.index")
    assert index.is_file()
    with monkeypatch.context() as patched:
        patched.setattr("beit.data.archives.tar_index._members", None)
        again = open_source(str(path))
    assert names(again) == names(first) and reds(again) == reds(first) == [0, 1, 2]
    write("x.tar", samples(5, 2, cls=b"1"))
    assert reds(open_source(str(path))) == [5, 6]
    with pytest.raises(UnreadableImage, match=r"0000\.jpg: x\.tar has changed since .*x\.tar\)"):
        first.image(0)
    index.write_bytes(index.read_bytes()[:100])
    assert reds(open_source(str(path))) == [5, 6]


@pytest.mark.parametrize(
    "forge",
    [
        lambda table: table.drop_columns("start"),
        lambda table: table.set_column(2, "size", table.column("name")),
    ],
)
def test_an_index_of_another_kind_is_not_taken(write, forge):
    path = write("x.tar", samples(0, 3))
    expected = names(open_source(str(path)))
    index = path.with_name(".x.tar.index")
    forged = forge(ipc.open_file(pyarrow.py_buffer(index.read_bytes())).read_all())
    with ipc.new_file(str(index), forged.schema) as file:
        file.write_table(forged)
    source = open_source(str(path))
    assert names(source) == expected and reds(source) == [0, 1, 2]


def test_an_index_whose_names_end_elsewhere_is_not_taken(write):
    path = write("x.tar", samples(0, 3))
    expected = names(open_source(str(path)))
    index = path.with_name(".x.tar.index")
    ends = np.cumsum([0, *map(len, expected)], dtype=np.int32)
    forged = ends.copy()
    forged[-1] = 1 << 30  # far behind the names
    content = index.read_bytes()
    assert content.count(ends.tobytes()) == 1
    index.write_bytes(content.replace(ends.tobytes(), forged.tobytes()))
    source = open_source(str(path))
    assert names(source) == expected and reds(source) == [0, 1, 2]


def test_an_index_that_cannot_lie_beside_goes_to_the_caches(write, tmp_path, monkeypatch, caplog):
    path = write("x.tar", samples(0, 2))
    path.with_name(".x.tar.index").mkdir()  # nothing can be written there, even by root
    assert reds(open_source(str(path))) == [0, 1]
    assert len([*(tmp_path / "caches" / "beit" / "shards").iterdir()]) == 1
    with monkeypatch.context() as patched:
        patched.setattr("beit.data.archives.tar_index._members", None)
        assert reds(open_source(str(path))) == [0, 1]
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert reds(open_source(str(path))) == [0, 1]
    assert "its index cannot be kept" in caplog.text


# ── damage ──────────────────────────────────────────────────────────────────────────────────────


def test_a_cut_or_damaged_shard_is_named_with_the_last_whole_file(write):
    data = bytearray(write("x.tar", samples(0, 3)).read_bytes())
    path = write("x.tar", {})
    path.write_bytes(data[: 512 * 5])
    with pytest.raises(ValueError, match=r"x\.tar: cut or damaged: .*, after 0001\.jpg; 2560 byt"):
        open_source(str(path))
    path.write_bytes(data[: 512 * 4 + 100])
    with pytest.raises(ValueError, match=r"x\.tar: cut or damaged"):
        open_source(str(path))
    data[data.index(b"0001.jpg") + 3] ^= 64  # its header no longer has its checksum
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"no header of a file at byte 1536, after 0000\.jpg"):
        open_source(str(path))
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"x\.tar: cut or damaged: empty file"):
        open_source(str(path))


def test_a_shard_without_a_mark_at_its_end_is_read_with_a_warning(write, caplog):
    path = write("x.tar", samples(0, 2))
    blocks = 2 * (1 + -(-len(jpeg(0)) // 512))  # two headers and their files
    path.write_bytes(path.read_bytes()[: 512 * blocks])
    assert reds(open_source(str(path))) == [0, 1]
    assert "files behind 0001.jpg may be missing" in caplog.text


def test_a_damaged_image_is_unreadable_alone(write):
    members = samples(0, 2) | {"0000.jpg": b"no image"}
    source = open_source(str(write("x.tar", members)))
    with pytest.raises(UnreadableImage, match=r"0000\.jpg: not an image .* \(in .*x\.tar\)"):
        source.image(0)
    assert int(source.image(1)[0, 0, 0]) // 19 == 1


@pytest.mark.parametrize(
    ("ending", "how"), [("tar.gz", "w:gz"), ("tgz", "w:gz"), ("tar.xz", "w:xz")]
)
def test_compressed_shards_are_refused_with_what_to_do(tmp_path, ending, how):
    path = tmp_path / f"x.{ending}"
    tarfile.open(path, how).close()
    with pytest.raises(ValueError, match=rf"x\.{ending}: no image in a compressed .* decompress"):
        open_source(str(path))
    os.rename(path, tmp_path / "x.tar")
    with pytest.raises(
        ValueError, match=r"x\.tar: compressed by (gzip|xz), .*: (gunzip|unxz) FILE"
    ):
        open_source(str(tmp_path / "x.tar"))


def test_others_are_refused(write, tmp_path):
    with pytest.raises(ValueError, match=r"x\.tar: no images .* 1 \.tar"):
        open_source(str(write("x.tar", {"n01.tar": b"x"})))
    with pytest.raises(FileNotFoundError, match=r"y-2\.tar: no such file"):
        write("y-1.tar", samples(0, 1))
        open_source(str(tmp_path / "y-{1..2}.tar"))
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(ValueError, match=r"pipe\.tar: not a regular file"):
        open_source(str(tmp_path / "pipe.tar"))


# ── shards of `beit pack` ───────────────────────────────────────────────────────────────────────


def test_packed_shards_have_names_of_classes_and_images_in_their_order(write):
    about = {
        "class_names": ["b", "a", "1"],
        "names": {"0001.jpg": "x/y.png", "0000.jpg": "x/y.png"},
    }
    members = {}
    for number, label in ((2, b"1"), (0, b"2"), (1, b"-1")):
        members |= {f"{number:04}.jpg": jpeg(20 * number), f"{number:04}.cls": label}
    packed = write("x-0.tar", members | {"__beit__": json.dumps(about).encode()})
    source = open_source(str(packed))
    assert names(source) == ["0002.jpg", "x/y.png", "x/y.png"]
    assert (reds(source), source.labels.tolist()) == ([2, 0, 1], [1, 2, -1])
    assert source.class_names == ["b", "a", "1"]
    about = {"class_names": ["a", "c"], "names": {}}
    other = write("x-1.tar", samples(7, 1, cls=b"1") | {"__beit__": json.dumps(about).encode()})
    both = open_source(str(other.parent / "x-*.tar"))
    assert (both.labels.tolist(), both.class_names) == ([1, 2, -1, 3], ["b", "a", "1", "c"])
    bare = {"class_names": None, "names": {}}
    flat = {"cat/a.jpg": jpeg(0), "dog/a.jpg": jpeg(0), "__beit__": json.dumps(bare).encode()}
    assert open_source(str(write("y.tar", flat))).labels is None


@pytest.mark.parametrize(
    "about", [b"", b"[]", b"{}", b'{"class_names": 3, "names": {}}', b'{"names": {"a": 1}}']
)
def test_what_a_packed_shard_says_may_be_damaged(write, about):
    with pytest.raises(
        ValueError, match=r"x\.tar: its member __beit__ is damaged: .* pack it anew"
    ):
        open_source(str(write("x.tar", samples(0, 1) | {"__beit__": about})))


def test_a_packed_class_is_a_number(write):
    about = {"__beit__": b'{"class_names": null, "names": {}}'}
    with pytest.raises(ValueError, match=r"x\.tar: 'cat' in a \.cls file; expected a number"):
        open_source(str(write("x.tar", samples(0, 1, cls=b"cat") | about)))
