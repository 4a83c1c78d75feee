"""`beit doctor DATA`: each fault is found, each with its images, and the clean list has none."""

import json
import os
import socket
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

import beit
from beit.cli import main
from beit.data.sources import open_source
from beit.diagnosis.doctor import Config, run
from beit.diagnosis.scan import perceptual_hash, scan


def drawing(seed: int, size: tuple[int, int] = (40, 56)) -> Image.Image:
    """A picture of few large blobs, (height, width)."""
    small = np.random.default_rng(seed).integers(256, size=(6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC)


def bomb(side: int = 60_000) -> bytes:
    """A PNG that says it has `side` pixels a side."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + chunk(b"IDAT", zlib.compress(bytes(9999)))
        + chunk(b"IEND", b"")
    )


@pytest.fixture
def sets(tmp_path: Path) -> tuple[Path, Path]:
    """Folders for training and testing, with one fault of each kind and more."""
    train, test = tmp_path / "train set", tmp_path / "held out"
    for folder in (train / "ant", train / "bee", train / "Bee", test / "ant", test / "bee"):
        folder.mkdir(parents=True)
    ant, bee = train / "ant", train / "bee"
    for number in range(24):
        drawing(number).save((ant if number < 12 else bee) / f"{number:02}.png")
    drawing(100).save(test / "bee" / "other.png")
    drawing(101).save(test / "ant" / "another.png")
    drawing(20).save(test / "bee" / "same.bmp")  # test_copy: bee/20.png
    drawing(21, (80, 112)).save(test / "bee" / "alike.jpg", quality=70)  # near_test: bee/21.png
    drawing(2).save(ant / "again.png")  # copy of ant/02.png
    drawing(3, (80, 112)).save(ant / "larger.jpg", quality=70)  # near: ant/03.png
    drawing(4).save(bee / "contrary.png")  # two_labels, with ant/04.png
    Image.new("RGB", (56, 40), (9, 9, 9)).save(ant / "black.png")  # flat
    drawing(30, (8, 9)).save(ant / "tiny.png")  # small
    drawing(31, (40, 400)).save(ant / "panorama.png")  # long
    drawing(32, (500, 600)).save(ant / "huge.png")  # size
    drawing(33).save(train / "Bee" / "one.png")
    (bee / "empty.jpg").touch()  # unreadable, as all below
    (bee / "text.jpg").write_text("no image")
    (bee / "cut.png").write_bytes((bee / "22.png").read_bytes()[:900])
    (bee / "bomb.png").write_bytes(bomb())
    os.mkfifo(bee / "fifo.png")
    os.symlink("loop-2.png", bee / "loop-1.png")
    os.symlink("loop-1.png", bee / "loop-2.png")
    os.symlink("/dev/zero", bee / "zero.png")
    os.symlink("..", bee / "up")
    with socket.socket(socket.AF_UNIX) as listening:
        os.chdir(bee)  # the path of a socket is short
        listening.bind("socket.png")
    os.chdir(tmp_path)
    drawing(34).save(bee / os.fsdecode(b"caf\xe9.png"))
    drawing(35).save(bee / "two\nlines.png")
    drawing(36).save(bee / "moving.gif", save_all=True, append_images=[drawing(37)])
    return train, test


EXPECTED = {
    "unreadable": {f"bee/{n}" for n in "empty.jpg text.jpg cut.png bomb.png fifo.png".split()}
    | {f"bee/{n}.png" for n in ("loop-1", "loop-2", "zero", "socket")},
    "copy": {"ant/again.png", "bee/contrary.png"},
    "near": {"ant/larger.jpg"},
    "test_copy": {"bee/20.png"},
    "near_test": {"bee/21.png"},
    "two_labels": {"ant/04.png", "bee/contrary.png"},
    "flat": {"ant/black.png"},
    "small": {"ant/tiny.png"},
    "long": {"ant/panorama.png"},
    "size": {"ant/huge.png"},
}


def test_each_fault_is_found_and_the_clean_list_has_none(sets, capsys):
    train, test = map(str, sets)
    command = ["doctor", train, "--test", test, "--write", "clean.txt", "--output", "checked"]
    assert main([*command, "--num_workers", "0"]) == 1
    shown, found = capsys.readouterr().out, json.loads(Path("checked/doctor.json").read_text())
    faults = found["train"]["faults"]
    assert {
        kind: {image["name"] for image in images} for kind, images in faults.items()
    } == EXPECTED
    reasons = {image["name"][4:]: image["reason"] for image in faults["unreadable"]}
    assert (
        "not a regular file" in reasons["fifo.png"] and "not a regular file" in reasons["zero.png"]
    )
    assert "too large" in reasons["bomb.png"] and "empty" in reasons["empty.jpg"]
    assert "symbolic links" in reasons["loop-1.png"]
    likes = {
        i["name"]: i["like"]
        for kind in ("copy", "near", "test_copy", "near_test")
        for i in faults[kind]
    }
    assert likes["ant/again.png"] == "ant/02.png" and likes["ant/larger.jpg"] == "ant/03.png"
    assert likes["bee/20.png"] == "bee/same.bmp" and likes["bee/21.png"] == "bee/alike.jpg"
    must = {check["name"] for check in found["checks"] if check["must"]}
    assert must == {"unreadable", "test_copy", "two_labels", "classes"}
    assert "classes 'Bee' and 'bee' differ in case only" in shown and "4 to mend" in shown
    assert "1 class with one image only: Bee" in shown
    page = Path("checked/report.html").read_text()
    assert "ant/again.png is like ant/02.png" in page and "socket.png" in page

    dropped = set().union(
        *(EXPECTED[kind] for kind in EXPECTED if kind not in ("near", "long", "size"))
    )
    left = open_source("@clean.txt")
    whole = open_source(train)
    names = {
        os.path.abspath(whole.file(i)) for i in range(len(whole)) if whole.name(i) not in dropped
    }
    assert {left.name(i) for i in range(len(left))} == names
    assert any("two\nlines" in name for name in names) and any(
        "caf\udce9" in name for name in names
    )
    result = run(Config("@clean.txt", test=test, num_workers=0))
    assert result.failures == [] and set(result.figures) == {"images", "near", "long", "size"}


def test_a_table_keeps_the_labels_and_drop_says_what_goes(sets, capsys):
    train = str(sets[0])
    main(["doctor", train, "--write", "clean.csv", "--drop", "[unreadable]", "--num_workers", "1"])
    left, whole = open_source("clean.csv"), open_source(train)
    labels = {
        os.path.abspath(whole.file(i)): whole.class_names[whole.labels[i]]
        for i in range(len(whole))
    }
    for index in range(len(left)):
        name = os.path.abspath(left.name(index))
        assert left.class_names[left.labels[index]] == labels[name]
    assert len(left) == len(whole) - 9 - 2  # a name that is no text, and one of two lines
    assert f"{len(left)} of {len(whole)} images in clean.csv" in capsys.readouterr().out


def test_a_table_beside_its_images_can_be_moved_with_them(tmp_path):
    folder = tmp_path / "photos"
    for number, name in enumerate(("ant", "bee")):
        (folder / name).mkdir(parents=True)
        drawing(number).save(folder / name / f"{number}.png")
    main(["doctor", str(folder), "--write", str(folder / "clean.csv"), "--num_workers", "0"])
    moved = folder.rename(tmp_path / "moved")
    source = open_source(str(moved / "clean.csv"))
    assert [source.name(index) for index in range(2)] == ["ant/0.png", "bee/1.png"]


def twelve_bits(folder: Path, count: int) -> Path:
    """Make a folder of 16-bit files whose values have 12 bits."""
    folder.mkdir()
    for number in range(count):
        values = np.random.default_rng(number).integers(4096, size=(40, 50), dtype=np.uint16)
        Image.fromarray(values).save(folder / f"{number}.png")
    return folder


def test_a_clean_list_is_read_as_its_source_without_labels(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = twelve_bits(Path("cells"), 2)
    (folder / "wells.csv").write_text("file,drug\n0.png,A\n1.png,B\n")
    command = ["doctor", f"{folder}?range=0:4095[:100%]", "--num_workers", "0"]
    for path, data in (("clean.txt", "@clean.txt"), ("clean.csv", "clean.csv")):
        assert main([*command, "--write", path]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert shown.count(f"--data '{data}?range=0:4095'") == 2
        assert int(open_source(f"{data}?range=0:4095").image(0).max()) > 200
        assert "labels none:" in shown and "name one: ?label=drug" in shown


def test_workers_find_the_same(sets):
    source = open_source(str(sets[0]))
    alone, several = scan(source, 0, "images"), scan(source, 2, "images")
    for one, other in zip(alone, several, strict=True):
        assert np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other


def test_sound_images_have_no_fault(tmp_path, capsys):
    assert main(["doctor", "shapes://40?size=24", "--num_workers", "0"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2:] == [
        "figure  40 images; no fault",
        "next    beit doctor 'shapes://40?size=24' --output checked",
    ]
    assert beit.doctor("shapes://40?size=24", num_workers=0, quiet=True).figures == {"images": 40}


def test_a_rare_class_that_is_spelled_nearly_as_a_large_one_is_told(tmp_path, capsys):
    names = ["round"] * 12 + ["stage 1"] * 12 + ["ruond", "Round ", "stage 2", "rod"]
    lines = ["file,label"]
    for number, name in enumerate(names):
        drawing(number).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,{name}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    main(["doctor", str(tmp_path / "labels.csv"), "--num_workers", "0"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "class 'ruond' (1 image) is spelled nearly as 'round'" in shown
    assert shown.count("spelled nearly") == 1


def test_a_class_of_one_image_is_a_finding(tmp_path, capsys):
    for name in ("a/0.png", "a/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        drawing(int(name[2])).save(tmp_path / name)
    main(["doctor", str(tmp_path), "--num_workers", "0"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "1 class with one image only: b → nothing is left of it for a test" in shown
    assert "figure 3 images; 1 finding on classes" in shown


def test_the_page_shows_images_and_only_columns_that_say_something(tmp_path):
    for number in range(14):
        drawing(number).convert("L").save(tmp_path / f"{number}.png")
    report = run(Config(str(tmp_path), output=str(tmp_path / "checked"), num_workers=0)).report
    assert report is not None
    page = report.read_text()
    assert page.count("<img") == 7  # every other one
    assert "what to do" not in page and "<th>red" not in page and "grey</th>" in page


def test_colours_and_sizes_are_those_of_the_images(tmp_path):
    for number, level in enumerate((51, 102)):
        pixels = np.full((30, 20 + number, 3), level, np.uint8)
        pixels[::2] = (level + 51, level, level)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    facts = scan(open_source(str(tmp_path)), 0, "images")
    mean, deviation = facts.colours()
    assert mean == pytest.approx([0.4, 0.3, 0.3]) and deviation[1] == pytest.approx(0.1)
    assert deviation[0] == pytest.approx(np.std([0.2, 0.4, 0.4, 0.6]))
    assert facts.bright() == pytest.approx(
        [0.5, 0.3, 0.3]
    )  # the mean of 102 and 153, of 51 and 102
    assert facts.width.tolist() == [20, 21] and facts.height.tolist() == [30, 30]
    assert facts.formats == {"PNG RGB, 8 bits": 2} and not facts.grey.any()


def test_a_perceptual_hash_is_that_of_the_lowest_frequencies():
    from scipy.fft import dctn

    pixels = np.random.default_rng(0).integers(256, size=(32, 32), dtype=np.uint8)
    image = beit.open_image(Image.fromarray(pixels))[0]
    low = dctn(pixels.astype(float))[:8, :8].flatten()
    bits = "".join(str(int(value)) for value in low > np.median(low[1:]))
    assert perceptual_hash(image) == int(bits, 2)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--write", "clean.txt"], "data is missing"),
        (["shapes://9", "--write", "clean.txt"], "a list names image files"),
        (["shapes://9", "--drop", "[blurred]"], "expected some of unreadable, copy"),
        (["shapes://9", "--near", "20"], "expected 0 to 16"),
        (["shapes://9", "--output", "."], "is no earlier output of doctor"),
        (["nowhere"], "no such file or folder"),
    ],
)
def test_mistakes_are_refused_before_anything_is_read(
    options, expected, tmp_path, monkeypatch, capsys
):
    (tmp_path / "mine.txt").touch()
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", *options]) == 2
    assert expected in capsys.readouterr().err


def test_data_with_splits_are_compared_with_their_own_test_images(tmp_path, capsys):
    for split, numbers in (("train", range(6)), ("test", range(5, 8))):
        (tmp_path / split).mkdir()
        for number in numbers:
            drawing(number).save(tmp_path / split / f"{number}.png")
    assert main(["doctor", str(tmp_path), "--num_workers", "0"]) == 1
    assert (
        "1 (16.7%) copies of a test image, as train/5.png, like test/5.png"
        in capsys.readouterr().out
    )


def test_labels_of_the_test_set_that_do_not_fit(sets, tmp_path, capsys):
    other = tmp_path / "cows" / "cow"
    other.mkdir(parents=True)
    (tmp_path / "cows" / "ant").mkdir()
    for number, name in ((200, "cow"), (201, "ant")):
        drawing(number).save(tmp_path / "cows" / name / "x.png")
    result = run(Config(str(sets[0] / "ant" / ".."), test=str(other.parent), num_workers=0))
    assert any("cow" in failure for failure in result.failures)


def test_sixteen_bits_end_with_the_command_to_type(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = twelve_bits(Path("cells"), 20)

    def said(data: str, status: int) -> str:
        assert main(["doctor", data, "--num_workers", "0"]) == status
        return " ".join(capsys.readouterr().out.split())

    out = said(f"{folder}[:50%]", 1)
    assert f"beit doctor '{folder}?range=0:4095[:50%]'" in out and "Mean" not in out
    assert "range 0.2% of values at its low end, 0.2% at its high end" in said(
        f"{folder}?range=0:4095", 0
    )
    out = said(f"{folder}?range=0:2000", 0)
    assert "if these are cut off, give a larger range" in out
    assert "figure 20 images; 51.2% of values at the high end of the range" in out
    out = said(f"{folder}?range=0:65535", 0)
    assert "the brightest pixel of an image is at 6.3% of it on average" in out
    assert "use 16 of 256 levels; if no image of this kind is brighter" in out and "no fault" in out
    out = said(f"{folder}?range=5000:65535", 0)
    assert "flat 20 (100.0%) of one colour" in out and "the range is wrong for them" in out
    (folder / "wells.csv").write_text("file,drug\n0.png,A\n1.png,B\n")
    assert f"beit doctor '{folder}/wells.csv?label=drug&range=0:4095'" in said(
        f"{folder}/wells.csv", 1
    )
    assert f"beit doctor '{folder}/wells.csv?label=drug&range=0:4095'" in said(
        f"{folder}/wells.csv?label=drug", 1
    )
    Path("stack").mkdir()
    tifffile.imwrite("stack/pages.tif", np.zeros((5, 40, 50), np.uint8))
    assert "beit doctor 'stack?bands=3,2,1'" in said("stack", 1)


def test_only_a_constant_image_is_of_one_colour_and_dropped(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("set").mkdir()
    spot = np.full((400, 400), 20, np.uint8)
    spot[7:10, 11:14] = 255
    ramp = np.tile(np.linspace(125, 131, 50).astype(np.uint8), (40, 1))
    noise = np.random.default_rng(0).normal(90, 1, (40, 50)).round().astype(np.uint8)
    for name, pixels in (("spot", spot), ("ramp", ramp), ("noise", noise), ("again", noise)):
        Image.fromarray(pixels).save(f"set/{name}.png")
    Image.new("RGB", (45, 53), (201, 33, 98)).save("set/constant.jpg", quality=30)
    main(["doctor", "set", "--write", "clean.txt", "--num_workers", "0"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "flat 1 (20.0%) of one colour, as constant.jpg" in shown
    assert "faint 4 (80.0%) nearly of one colour" in shown
    assert "1 (20.0%) copies of another image, as noise.png, like again.png" in shown
    kept = [Path(line).name for line in Path("clean.txt").read_text().splitlines()]
    assert kept == ["again.png", "ramp.png", "spot.png"]


def test_a_class_without_an_image_in_the_clean_list_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("well", "control", "drug, low")):
        Path("set", name).mkdir(parents=True)
        drawing(number).save(Path("set", name, "0.png"))
    for name in ("control", "drug, low"):
        Image.new("L", (56, 40), 9).save(Path("set", name, "0.png"))
    command = ["doctor", "set", "--num_workers", "0", "--write"]
    said = "class control has no image left in clean.csv"
    main([*command, "clean.csv"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "classes control, 'drug, low' have no image left in clean.csv" in shown
    drawing(9).save("set/drug, low/1.png")
    main([*command, "clean.txt"])
    assert said.replace("csv", "txt") in " ".join(capsys.readouterr().out.split())
    drawing(8).save("set/control/two\nlines.png")  # a table has no such name
    Path("clean.csv").unlink()
    main([*command, "clean.csv"])
    assert said in " ".join(capsys.readouterr().out.split())
    main([*command, "all.csv", "--drop", "[]"])
    assert "left in" not in capsys.readouterr().out


def test_an_empty_class_folder_that_finetune_refuses_is_told(tmp_path, capsys):
    for name in ("ant", "bee", "in, between"):
        (tmp_path / name).mkdir()
    for number, name in enumerate(("ant/0.png", "ant/1.png", "bee/2.png", "bee/3.png")):
        drawing(number).save(tmp_path / name)
    assert main(["doctor", f"{tmp_path}", "--num_workers", "0"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "no image in the class folder 'in, between' → delete the folder, or add images" in shown
