import hashlib
import json
import re
from pathlib import Path

import pytest

from beit.weights import manifest
from beit.weights.manifest import PublishedFile

TESTS = Path(__file__).parents[1]
FILES = manifest.published_files()


def of_file(content, **changes):
    about = {"name": "tiny", "file": "tiny-x.pth", "url": "http://x/tiny-x.pth", "what": "a test"}
    digest = hashlib.sha256(content).hexdigest()[:8]
    return PublishedFile(**(about | {"model": "VQKD", "shapes": {}, "sha256": digest} | changes))


@pytest.fixture
def tiny(monkeypatch):
    file = of_file(b"weights")
    monkeypatch.setattr(manifest, "published_files", lambda: {"tiny": file})
    return file


def test_every_file_has_an_address_a_name_of_its_own_and_sizes():
    assert len(FILES) >= 30
    assert len({file.file for file in FILES.values()}) == len(FILES)
    for file in FILES.values():
        assert re.fullmatch(r"https://[\w./~-]+", file.url)
        assert file.shapes["image"] % file.shapes["patch"] == 0
        assert file.sha256 is None or re.fullmatch("[0-9a-f]{8,64}", file.sha256)


def test_the_classifiers_of_imagenet_are_known_by_their_names():
    known = {name for name in FILES if manifest.is_of_imagenet(FILES[name].file)}
    assert {"beitv2_large_patch16_224_pt1k_ft21kto1k", "mmpretrain_beitv2_base_ft21kto1k"} < known
    assert all(re.search(r"(ft|to)(1k|21k|22k)$", name) for name in known)
    assert not manifest.is_of_imagenet("mine.pth")


def test_checksums_are_the_ends_of_the_names():
    known = {file.file: file.sha256 for file in FILES.values() if file.sha256}
    for file in FILES.values():
        digits = re.search(r"-([0-9a-f]{8})\.pth$", file.file)
        if digits:
            assert known.pop(file.file) == digits[1]
    assert list(known) == ["ViT-B-16.pt"]  # whose address has all 64


@pytest.mark.parametrize("name", json.loads((TESTS / "goldens/published_layouts.json").read_text()))
def test_sizes_are_those_of_the_published_layouts(name):
    layouts = json.loads((TESTS / "goldens" / "published_layouts.json").read_text())
    keys, shapes = layouts[name]["keys"], FILES[name].shapes
    vqkd = FILES[name].model == "VQKD"
    prefix = "encoder." if vqkd else ""
    width, _, patch, _ = keys[f"{prefix}patch_embed.proj.weight"]
    assert (shapes["width"], shapes["patch"]) == (width, patch)

    def count(start):
        found = [re.match(rf"{re.escape(start)}(\d+)\.", key) for key in keys]
        return len({match[1] for match in found if match})

    assert shapes["depth"] == count(f"{prefix}blocks.")
    N = (shapes["image"] // patch) ** 2
    if vqkd:
        assert keys["encoder.pos_embed"][1] == 1 + N
        assert shapes["decoder_depth"] == count("decoder.blocks.")
        assert [shapes["codes"], shapes["code_width"]] == keys["quantize.embedding.weight"]
        assert shapes["teacher_width"] == keys["decode_task_layer.2.weight"][0]
    elif FILES[name].model == "MaskedImageModel":
        assert keys["rel_pos_bias.relative_position_index"] == [1 + N, 1 + N]
        assert (shapes["codes"], shapes["head_layers"]) == (
            keys["lm_head.weight"][0],
            count("cls_pt_layers."),
        )
    else:
        assert keys["blocks.0.attn.relative_position_index"] == [1 + N, 1 + N]
        assert shapes["classes"] == keys["head.weight"][0]


def test_files_are_found_by_name_and_by_file_name():
    name = "vqkd_encoder_base_decoder_1x768x12_dino"
    assert manifest.find(name).file == f"{name}-663c55d7.pth"
    assert manifest.find(f"{name}-663c55d7.pth").name == name
    assert name in manifest.names()


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"did you mean beitv2_base_patch16_224_pt1k\?.*names\(\)"):
        manifest.find("beit2_base_patch16_224_pt1k")
    with pytest.raises(ValueError, match=r"called 'zzz'\. beit\.weights\.manifest\.names\(\)"):
        manifest.find("zzz")


def test_a_file_with_the_name_of_a_published_one_is_checked(tiny, tmp_path):
    path = tmp_path / tiny.file
    path.write_bytes(b"weights")
    assert manifest.check(path) is tiny
    path.write_bytes(b"weightz")
    found = hashlib.sha256(b"weightz").hexdigest()[:8]
    message = rf"tiny-x\.pth .* begins with {found} instead of {tiny.sha256}.*{re.escape(tiny.url)}"
    with pytest.raises(ValueError, match=message):
        manifest.check(path)


def test_a_file_with_another_name_is_not_opened(tiny, tmp_path):
    assert manifest.check(tmp_path / "nothing-here.pth") is None


def test_a_file_without_a_known_checksum_is_not_checked(monkeypatch, tmp_path):
    file = of_file(b"", sha256=None)
    monkeypatch.setattr(manifest, "published_files", lambda: {"tiny": file})
    (tmp_path / file.file).write_bytes(b"anything")
    assert manifest.check(tmp_path / file.file) is file


def test_settings_complete_the_overrides():
    half = (0.5, 0.5, 0.5)
    first = FILES["beit_base_patch16_224_pt22k_ft22kto1k"]
    assert manifest.settings(first, {"num_heads": 12}) == {
        "num_heads": 12, "mean": list(half), "std": list(half)
    }  # fmt: skip
    assert manifest.settings(first, {"mean": None})["mean"] is None
    assert manifest.settings(FILES["beitv2_base_patch16_224_pt1k_ft1k"], {}) == {}


def test_the_table_in_the_documentation_is_up_to_date():
    page = (TESTS.parent / "docs" / "hub.md").read_text(encoding="utf-8")
    assert manifest.table() in page, "print(beit.weights.manifest.table()) prints the new one"
