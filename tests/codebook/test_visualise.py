"""The output of `visualise codes` matches naive loops for any batch size and processes."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from beit.codebook import gallery, style
from beit.codebook import map as code_map
from beit.codebook import visualise as visualise_codes
from beit.codebook.visualise import Config
from beit.data.sources import open_source
from beit.data.views import EvalView
from beit.draw.components import feature_colours
from beit.nn.quantizer import unit
from beit.nn.tokenizer import VQKD, VQKDConfig
from beit.nn.vit import ViTConfig
from beit.run.device import DeviceConfig
from beit.weights.file import save_weights
from beit.weights.open import load_tokenizer

DATA = "shapes://23?size=24"  # 23 x 6 patches
K, N, KEPT = 11, 6, 3
HOSTILE = "<img src=x onerror=alert(1)> \"'& 猫 $x^{"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, vit: Callable[..., ViTConfig]) -> str:
    torch.manual_seed(0)
    encoder = vit(absolute_positions=True, relative_bias="none", layer_scale=None)
    path = tmp_path_factory.mktemp("codes") / "tokenizer.safetensors"
    tokenizer = VQKD(VQKDConfig(encoder, decoder_depth=1, num_codes=K, code_width=5))
    for parameter in tokenizer.encode_task.parameters():
        torch.nn.init.normal_(parameter)
    tokenizer.quantizer.codebook[:] = unit(torch.randn(K, 5))
    save_weights(path, tokenizer)
    return str(path)


def config(model: str, output: Path, **changes: Any) -> Config:
    settings = {"data": DATA, "batch_size": 4, "num_workers": 0, "per_code": KEPT, "min_uses": 1}
    settings |= {"num_codes": 2, "layout": "none"}
    device = DeviceConfig(accelerator="cpu")
    return Config(model=model, output=str(output), device=device, **(settings | changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Twelve images in two classes with names that could break a page; the third is too small."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(3)
    for number in range(12):
        path = root / HOSTILE[number % 2 :] / f"{number:02} {HOSTILE}.png"
        path.parent.mkdir(exist_ok=True)
        shape = (20, 7, 3) if number == 2 else (20, 30, 3)
        Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(path)
    return str(root)


@pytest.fixture(scope="module", autouse=True)
def coarse() -> Iterator[None]:
    """Figures of few pixels, which are quick to draw."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(style._STYLE, "savefig.dpi", 30)
        patched.setattr(gallery, "DPI", 30)
        patched.setattr(code_map, "_SIDE", 200)
        yield


def read(output: Path) -> dict[str, Any]:
    return json.loads((output / "codes.json").read_text())  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def shapes(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("shapes") / "codes"
    assert visualise_codes.run(config(model, output, rank_by="use")) == (output, 23, 9, 11)
    return output


# ── what is written ─────────────────────────────────────────────────────────────────────────────


def test_every_code_matches_a_loop(model: str, shapes: Path) -> None:
    tokenizer, source = load_tokenizer(model), open_source(DATA)
    assert isinstance(tokenizer, VQKD)
    assert source.labels is not None
    view = EvalView((16, 24))
    images = torch.stack([view(source.image(index)) for index in range(23)])
    codes = tokenizer.encode(images)
    vectors, book = tokenizer.embed(images), tokenizer.quantizer.codebook
    scores = torch.cosine_similarity(vectors, book[codes], dim=-1).detach()
    record = read(shapes)
    assert record["about"]["images"] == 23
    assert [code["code"] for code in record["codes"]] == list(range(K))
    assert sum(code["uses"] > 0 for code in record["codes"]) > 3
    for number, code in enumerate(record["codes"]):
        places = (codes == number).nonzero().tolist()
        assert code["uses"] == len(places)
        assert code["images"] == len({image for image, _ in places})
        if not places:
            assert code["purity"] is code["label"] is code["closeness"] is None
            assert code["patches"] == {"closest": [], "random": []}
            continue
        labels = [int(source.labels[image]) for image, _ in places]
        counts = [labels.count(label) for label in range(max(labels) + 1)]
        assert code["purity"] == max(counts) / len(places)
        share = torch.bincount(codes.T.eq(number).nonzero()[:, 0]).double() / len(places)
        bits = sum(-float(p) * math.log2(p) for p in share if p)
        assert code["position_entropy"] == pytest.approx(bits)
        places.sort(key=lambda place: -float(scores[tuple(place)]))
        closest = code["patches"]["closest"]
        assert [patch[:2] for patch in closest] == places[:KEPT]
        expected = [float(scores[tuple(place)]) for place in places[:KEPT]]
        assert [patch[2] for patch in closest] == pytest.approx(expected, abs=2**-16)
        random = [patch[:2] for patch in code["patches"]["random"]]
        assert len(random) == min(KEPT, len(places))
        assert all(patch in places for patch in random)
        angles = torch.cosine_similarity(book[number], book, dim=-1)
        nearest = [other for other in angles.argsort(descending=True).tolist() if other != number]
        assert [other for other, _ in code["nearest"]] == nearest[:6]
    named = {int(image): about["name"] for image, about in record["images"].items()}
    assert named == {image: source.name(image) for image in sorted(named)}


def test_the_folder_is_complete(shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sorted(path.name for path in shapes.parent.iterdir()) == ["codes"]
    names = {path.stem for path in (shapes / "figures").iterdir()}
    expected = {"closest", "random", "neighbours", "usage", "positions", "cooccurrence", "map-pca"}
    assert names == expected
    assert len([*(shapes / "figures").iterdir()]) == 2 * len(expected)
    page = (shapes / "report.html").read_text()
    for words in ("of 11 codes are used", "Codes that co-occur", "Most used", "chance"):
        assert words in page


def test_batches_and_workers_do_not_change_the_result(
    model: str, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visualise_codes, "write_codebook_report", lambda *_, **__: None)
    visualise_codes.run(config(model, tmp_path / "b", batch_size=23, num_workers=1))
    assert read(tmp_path / "b")["codes"] == read(shapes)["codes"]
    visualise_codes.run(config(model, tmp_path / "s", seed=1))
    assert read(tmp_path / "s")["codes"] != read(shapes)["codes"]


def test_names_are_text_and_small_images_are_left_out(
    model: str,
    folder: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("sklearn")
    with pytest.raises(ValueError, match=r"1 of 12 images cannot be read.*20 x 7 pixels are small"):
        visualise_codes.run(config(model, tmp_path / "out", data=folder))
    assert not [*tmp_path.iterdir()]
    changes = {"max_unreadable": 0.1, "explorer": True, "explorer_images": 4, "layout": "tsne"}
    output = tmp_path / "out"
    with caplog.at_level("INFO", logger="beit"):
        result = visualise_codes.run(config(model, output, data=folder, codes=(10, 3), **changes))
    assert result.images == 11
    shown = capsys.readouterr()
    assert "smaller than a patch of 8 x 8" in shown.err
    assert "11 images (1 left out), " in caplog.text
    assert "MB, independent of the number of images" in caplog.text
    record = read(output)
    used = [code for code in record["codes"] if code["uses"]]
    assert {code["label"] for code in used} <= {HOSTILE, HOSTILE[1:]}
    names = {about["name"] for about in record["images"].values()}
    assert all(HOSTILE in name for name in names)
    for page in ("report.html", "explorer.html"):
        assert "<img src=x" not in (output / page).read_text()


def test_the_explorer_has_the_features_of_its_images(model: str, tmp_path: Path) -> None:
    """The colours and cosines are those of `beit visualise features`: of the encoder's patches."""
    output = tmp_path / "out"
    visualise_codes.run(config(model, output, explorer=True, explorer_images=3))
    page = (output / "explorer.html").read_text()
    summary = json.loads(page.split('id="data-summary">')[1].split("</script>")[0])
    tokenizer, source = load_tokenizer(model), open_source(DATA)
    view = EvalView(tokenizer.image_size, 0.875)
    images = torch.stack([view(source.image(number)) for number in (0, 11, 22)])
    assert isinstance(tokenizer, VQKD)
    with torch.no_grad():
        features = tokenizer.encoder(images).patches
    expected = [rows.tobytes().hex() for rows in feature_colours(features)]
    assert [row[3] for row in summary["images"]] == expected
    for row, patches in zip(summary["images"], features, strict=True):
        cosines = unit(patches) @ unit(patches).T
        others = cosines[~torch.eye(N, dtype=torch.bool)]
        assert row[4] == pytest.approx([float(others.min()), float(others.max())], abs=1e-5)
    uses = [code["uses"] for code in read(output)["codes"]]
    assert summary["map"]["codes"] == [code for code in range(K) if uses[code]]
    assert summary["map"]["method"] == "principal components"  # layout: none


def test_a_tokenizer_of_one_code(model: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(model)
    assert isinstance(tokenizer, VQKD)
    torch.nn.init.zeros_(tokenizer.encode_task[2].weight)  # all vectors are its bias
    save_weights(tmp_path / "dead.safetensors", tokenizer)
    used = int(tokenizer.encode(torch.zeros(1, 3, 16, 24))[0, 0])
    output, unused = tmp_path / "out", (used + 1) % K
    dead = str(tmp_path / "dead.safetensors")
    visualise_codes.run(config(dead, output, layout="tsne", codes=(used, unused)))
    assert [code["uses"] for code in read(output)["codes"]] == [
        23 * N if code == used else 0 for code in range(K)
    ]
    page = (output / "report.html").read_text()
    for words in (
        "No t-SNE: it needs 5",
        "there are no pairs",
        f"Code {unused}. never used: no patch.",
    ):
        assert words in page


# ── refusals ────────────────────────────────────────────────────────────────────────────────────


def test_invalid_options_are_refused_before_an_image_is_read(
    model: str, tmp_path: Path, folder: str
) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"codes names 11; .* has the codes 0 to 10"):
        visualise_codes.run(config(model, out, codes=(3, 11)))
    flat = str(next(Path(folder).iterdir()))
    with pytest.raises(ValueError, match=r"rank_by is purity, which needs labels, and .* has none"):
        visualise_codes.run(config(model, out, data=flat, rank_by="purity"))
    with pytest.raises(ValueError, match="codes is empty"):
        config(model, out, codes=())
    with pytest.raises(ValueError, match="per_code must be at least 1, got 0"):
        config(model, out, per_code=0)
    with pytest.raises(FileExistsError, match="is not overwritten"):
        visualise_codes.run(config("no such model", tmp_path))
    with pytest.raises(ValueError, match=r"codes.html is to be a directory, .* name it .*/codes$"):
        visualise_codes.run(config("no such model", tmp_path / "codes.html"))


# ── real processes ──────────────────────────────────────────────────────────────────────────────

SCRIPT = """
import sys
from pathlib import Path
from beit.codebook import visualise as recipe
from beit.run.device import DeviceConfig

recipe.run(recipe.Config(
    sys.argv[1], "shapes://201?size=32", sys.argv[2], per_code=4, min_uses=1, layout="none",
    batch_size=8, num_workers=0, device=DeviceConfig(accelerator="cpu"),
))
"""


@pytest.mark.slow
def test_two_processes_write_the_same_as_one(model: str, tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    for processes in (1, 2):
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [sys.executable, *(launcher if processes > 1 else []), str(script), model]
        done = subprocess.run(
            [*command, str(tmp_path / str(processes))],
            capture_output=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            timeout=600,
        )
        assert done.returncode == 0, done.stderr.decode()
    files = sorted(path.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("*.*"))
    assert len(files) == 16
    for file in files:
        assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "2" / file).read_bytes(), file
