import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from beit import cli
from beit.data.sources import open_source
from beit.data.views import EvalView
from beit.nn.heads import ImageClassifier, ImageClassifierConfig
from beit.nn.vit import ViTConfig
from beit.run.device import DeviceConfig
from beit.tables import predict
from beit.tables.predict import Config, in_numbers_of, likeliest
from beit.weights.file import save_weights

DATA = "shapes://7?size=24"
CLASSES = ("ant", "bee", "cat", "dog")


@pytest.fixture(scope="module")
def classifier(vit: Callable[..., ViTConfig]) -> ImageClassifier:
    torch.manual_seed(0)
    model = ImageClassifier(ImageClassifierConfig(vit(), 4, class_names=CLASSES))
    for parameter in model.parameters():  # as drawn, all images would look nearly alike
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, classifier: ImageClassifier) -> str:
    path = tmp_path_factory.mktemp("predict") / "classifier.safetensors"
    save_weights(path, classifier)
    return str(path)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The images of DATA as files in the working directory."""
    monkeypatch.chdir(tmp_path)
    source, paths = open_source(DATA), []
    for index in range(len(source)):
        paths.append(f"{index}.png")
        pixels = source.image(index).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(paths[-1])
    return paths


def config(model: str, output: Path | None, **changes: Any) -> Config:
    """Batches of 3, 3 and 1 images; one per part."""
    settings = {"data": DATA, "batch_size": 3, "part_size": 3, "num_workers": 0}
    device = DeviceConfig(accelerator="cpu")
    name = None if output is None else str(output)
    return Config(model=model, output=name, device=device, **(settings | changes))


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_the_likeliest_classes_come_first() -> None:
    half = torch.tensor(0.5).log()
    logits = torch.tensor([[half, 0.0, half], [1.0, 1.0, 1.0]]).to(torch.bfloat16)
    best = likeliest(logits, 2)
    assert best["class_index"].tolist() == [[1, 0], [0, 1]]  # the first of equals
    torch.testing.assert_close(
        best["probability"], torch.tensor([[0.5, 0.25], [1 / 3, 1 / 3]]), rtol=0, atol=2e-3
    )
    assert best["probability"].dtype == torch.float32


def test_predictions_are_those_of_the_classifier(
    model: str, classifier: ImageClassifier, tmp_path: Path
) -> None:
    output = tmp_path / "classes.parquet"
    assert predict.run(config(model, output, top_k=3))[:2] == (output, 7)
    source, view = open_source(DATA), EvalView((16, 24))
    images = torch.stack([view(source.image(index)) for index in range(7)])
    with torch.no_grad():
        best = classifier(images).softmax(dim=1).topk(3)
    rows = parquet.read_table(output)
    names = ["index", "path", "label", "class_index", "class_name", "probability"]
    assert rows.column_names == names
    indices = rows["class_index"].combine_chunks().to_numpy_ndarray()
    assert indices.dtype == np.uint8
    assert indices.tolist() == best.indices.tolist()
    assert len(np.unique(indices[:, 0])) > 1  # images do differ
    assert rows["class_name"].to_pylist() == [[CLASSES[i] for i in row] for row in indices]
    np.testing.assert_allclose(
        rows["probability"].combine_chunks().to_numpy_ndarray(), best.values.numpy(), atol=1e-6
    )
    about = json.loads(rows.schema.metadata[b"beit"])
    expected = {"verb": "predict", "kind": "ImageClassifier", "num_classes": 4, "grid": [2, 3]}
    expected |= {"class_names": [*CLASSES], "mean": list(classifier.backbone.config.mean)}
    assert about.items() >= expected.items()


def test_a_model_with_fewer_classes_gives_all_and_without_names_none(
    vit: Callable[..., ViTConfig], tmp_path: Path
) -> None:
    nameless = ImageClassifier(ImageClassifierConfig(vit(), 2, pooling="cls"))
    save_weights(tmp_path / "classifier.safetensors", nameless)
    predict.run(config(str(tmp_path / "classifier.safetensors"), tmp_path / "classes.npz"))
    with np.load(tmp_path / "classes.npz") as arrays:
        assert "class_name" not in arrays
        assert np.sort(arrays["class_index"]).tolist() == [[0, 1]] * 7
        np.testing.assert_allclose(arrays["probability"].sum(axis=1), 1, atol=1e-6)


def test_another_image_size_has_another_grid(model: str, tmp_path: Path) -> None:
    output = tmp_path / "classes.npz"
    predict.run(config(model, output, image_size=(24, 32)))
    with np.load(output) as arrays:
        assert json.loads(str(arrays["about"]))["grid"] == [3, 4]
        assert arrays["class_index"].shape == (7, 4)


def test_a_resumed_run_equals_an_undisturbed_one(
    model: str, tmp_path: Path, interrupt_at: Callable[..., None]
) -> None:
    for suffix in (".npz", ".parquet", ".jsonl"):
        predict.run(config(model, tmp_path / f"one{suffix}"))
        again = config(model, tmp_path / f"two{suffix}")
        interrupt_at(predict, again, 2)
        predict.run(again)
        assert (tmp_path / f"two{suffix}").read_bytes() == (tmp_path / f"one{suffix}").read_bytes()


def test_other_models_are_refused(classifier: ImageClassifier, tmp_path: Path) -> None:
    save_weights(tmp_path / "backbone.safetensors", classifier.backbone)
    with pytest.raises(ValueError, match="holds a VisionTransformer, which names no classes"):
        predict.run(config(str(tmp_path / "backbone.safetensors"), tmp_path / "classes.npz"))


def test_no_class_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        config("none", tmp_path / "classes.npz", top_k=0)


# ── files, lists and JSON lines ─────────────────────────────────────────────────────────────────


def test_lines_equal_the_table(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict.run(config(model, tmp_path / "classes.parquet", top_k=2))
    predict.run(config(model, tmp_path / "classes.jsonl", top_k=2))
    assert "7 rows, " in capsys.readouterr().err
    assert predict.run(config(model, None, top_k=2))[:2] == (None, 7)
    shown = capsys.readouterr()
    assert shown.out == (tmp_path / "classes.jsonl").read_text()  # nothing but lines
    assert "step 3/3" in shown.err
    assert "7 rows, " in shown.err
    rows = parquet.read_table(tmp_path / "classes.parquet").to_pylist()
    for row, line in zip(rows, lines(shown.out), strict=True):
        top = zip(row["class_index"], row["class_name"], row["probability"], strict=True)
        assert list(line) == ["path", "index", "label", "label_name", "top"]
        assert line["label_name"] == (CLASSES[row["label"]] if row["label"] >= 0 else None)
        assert [line[name] for name in ("path", "index", "label")] == [
            *(row["path"], row["index"], row["label"])
        ]
        assert [(c["class"], c["name"], np.float32(c["probability"])) for c in line["top"]] == [
            *top
        ]


def test_files_give_what_their_source_gives_in_any_order(
    model: str, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict.run(config(model, None))
    alike = [line["top"] for line in lines(capsys.readouterr().out)]
    order = [5, 2, 2, 6, 0]
    predict.run(config(model, None, data=[files[index] for index in order]))
    results = lines(capsys.readouterr().out)
    assert [(line["path"], line["index"]) for line in results] == [
        (files[index], place) for place, index in enumerate(order)
    ]
    for line, index in zip(results, order, strict=True):
        assert "label" not in line
        assert [choice["class"] for choice in line["top"]] == [c["class"] for c in alike[index]]
        probabilities = [choice["probability"] for choice in line["top"]]
        assert probabilities == pytest.approx([c["probability"] for c in alike[index]], abs=1e-6)
    predict.run(config(model, None, data=files[3]))
    assert lines(capsys.readouterr().out)[0]["path"] == files[3]


def test_standard_input_and_a_file_name_the_same_images(
    model: str,
    files: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = f"{files[4]}\n\n{files[1]}\n{files[4]}\n".encode()
    (tmp_path / "list.txt").write_bytes(text)
    predict.run(config(model, None, data="@list.txt"))
    expected = capsys.readouterr().out
    assert len(expected.splitlines()) == 3
    options = ["--device.accelerator", "cpu", "--num_workers", "0", "--batch_size", "3"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    assert cli.main(["predict", "--model", model, "--data", "-", *options]) == 0
    assert capsys.readouterr().out == expected
    for data, message in (
        (b"", "the list is empty"),
        (b"0.png\nno.png", "line 2: no.png: no such"),
    ):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert cli.main(["predict", "--model", model, "--data", "-", *options]) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert f"standard input{', ' if data else ': '}{message}" in shown.err


def test_an_unreadable_image_has_its_error(
    model: str, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "3.png").write_text("words")
    predict.run(config(model, None, data=files))
    results = lines(capsys.readouterr().out)
    assert [line["index"] for line in results] == list(range(7))
    assert results[3].keys() == {"path", "index", "error"}
    assert results[3]["error"].startswith("not an image")
    assert all("top" in line for line in results if line["index"] != 3)
    for spec in ([f"{file}?range=0:255" for file in files], "?.png?range=0:255"):
        predict.run(config(model, None, data=spec))
        assert lines(capsys.readouterr().out) == results
    predict.run(config(model, tmp_path / "classes.jsonl", data=files, max_unreadable=0.2))
    assert lines((tmp_path / "classes.jsonl").read_text()) == results
    for refused in ({"data": files, "max_unreadable": 0.1}, {"data": str(tmp_path)}):
        with pytest.raises(ValueError, match=r"1 of 7 images cannot be read.*3\.png"):
            predict.run(config(model, None, **refused))
    for none in (["3.png"], ["3.png", "3.png"]):
        with pytest.raises(
            ValueError, match=r"none of \d images? can be read: 3\.png: not an image"
        ):
            predict.run(config(model, None, data=none))


def test_lines_without_names_of_classes(
    vit: Callable[..., ViTConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_weights(tmp_path / "c.safetensors", ImageClassifier(ImageClassifierConfig(vit(), 2)))
    predict.run(config(str(tmp_path / "c.safetensors"), None))
    assert lines(capsys.readouterr().out)[0]["top"][0].keys() == {"class", "probability"}


def test_outputs_that_are_there_or_of_another_kind_are_refused(model: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    for field, name in (("output", "rows.jsonl"), ("picture", "grid.png")):
        (tmp_path / name).write_text("mine")
        with pytest.raises(FileExistsError, match="is not overwritten"):
            predict.run(config(**({"model": model, "output": None} | {field: tmp_path / name})))
        assert (tmp_path / name).read_text() == "mine"
    with pytest.raises(
        ValueError, match=r"expected a name that ends in \.jsonl, \.csv, \.parquet or \.npz"
    ):
        predict.run(config(model, tmp_path / "rows.json"))
    with pytest.raises(ValueError, match=r"grid\.jpg'; expected a name that ends in \.png"):
        predict.run(config(model, None, picture="grid.jpg"))
    with pytest.raises(FileNotFoundError, match=r"grid\.png: its folder does not exist"):
        predict.run(config(model, None, picture=str(mine / "grid.png")))
    with pytest.raises(ValueError, match="picture_images must be at least 1, got 0"):
        config(model, None, picture_images=0)


def test_processes_do_not_share_standard_output(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Two:
        world_size, is_global_zero = 2, True

    monkeypatch.setattr(predict, "launch", lambda _: Two())
    with pytest.raises(ValueError, match="2 processes cannot share standard input and output"):
        predict.run(config(model, None))


# ── the picture ─────────────────────────────────────────────────────────────────────────────────


def test_the_picture_shows_the_first_images_and_their_classes(
    model: str,
    files: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    drawn: list[Any] = []

    def draw(predictions: list[Any], heading: str) -> bytes:
        drawn.extend([*predictions, heading])
        return predict_grid(predictions, heading)

    predict_grid = predict.prediction_grid
    monkeypatch.setattr(predict, "prediction_grid", draw)
    (tmp_path / "1.png").write_text("words")
    picture = str(tmp_path / "grid.png")
    output = tmp_path / "rows.jsonl"
    settings = {"data": files, "max_unreadable": 0.2, "picture_images": 4}
    with caplog.at_level("INFO", logger="beit"):
        predict.run(config(model, output, picture=picture, **settings))
    assert f"picture of 4 images: {picture}" in caplog.messages
    rows = lines(output.read_text())
    assert drawn.pop() == ""  # no heading
    assert len(drawn) == 4
    assert drawn[1].image is None
    for index in (0, 2, 3):
        best = rows[index]["top"][0]
        assert drawn[index].guess == best["name"]
        assert drawn[index].probability == pytest.approx(best["probability"], abs=1e-6)
        assert drawn[index].truth is None
        assert drawn[index].image.shape == (3, 16, 24)
    with Image.open(picture) as opened:
        assert opened.format == "PNG"


def test_right_and_wrong_images_are_counted_and_the_wrong_ones_drawn_first(
    model: str,
    files: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    interrupt_at: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    predict.run(config(model, None, data=files))
    top = [line["top"][0] for line in lines(capsys.readouterr().out)]
    labels = [each["name"] for each in top]
    for index in (2, 4):
        labels[index] = next(name for name in CLASSES if name != labels[index])
    labels[5] = "wolf"  # the model has no such class
    table = "\n".join(["file,label", *map(",".join, zip(files, labels, strict=True))])
    (tmp_path / "labels.csv").write_text(table)
    drawn: list[Any] = []
    monkeypatch.setattr(predict, "prediction_grid", lambda *all: drawn.append(all) or b"")
    options = {"data": "labels.csv", "picture": "grid.png", "picture_images": 4}
    resumed = config(model, tmp_path / "rows.parquet", **options)
    interrupt_at(predict, resumed, 2)
    result = predict.run(resumed)  # counts the finished parts too
    assert result == (tmp_path / "rows.parquet", 7, 6, 4)
    ending = predict.ending(resumed, result)
    assert ending is not None
    assert ending.figure == "7 images, 66.7% right (4 of 6 labelled)"
    Path("grid.png").unlink()
    assert predict.run(config(model, None, **options)) == (None, 7, 6, 4)
    first, second = sorted((2, 4), key=lambda index: -top[index]["probability"])
    for predictions, heading in drawn:
        assert heading == "2 of 6 wrong, the surest first"
        guesses = [(each.guess, each.probability) for each in predictions]
        for guess, index in zip(guesses, (first, second, 0, 1), strict=True):
            name, probability = top[index]["name"], top[index]["probability"]
            assert guess == (name, pytest.approx(probability, abs=1e-6))
        assert [each.right for each in predictions] == [False, False, True, True]


class Labelled:
    """Four images, the last without a label."""

    def __init__(self, class_names: list[str] | None) -> None:
        self.labels, self.class_names = torch.tensor([0, 1, 2, -1]), class_names
        self.why_unlabelled = ""

    def __len__(self) -> int:
        return 4


@pytest.mark.parametrize(
    ("class_names", "expected"),
    [
        (None, [0, 1, 2, -1]),
        ([*CLASSES], [0, 1, 2, -1]),
        (["dog", "ant", "cat"], [3, 0, 2, -1]),  # by name
        (["n01", "n02", "n03", "n04"], [-1] * 4),  # other names, though as many
        (["dog", "ant", "wolf"], [3, 0, -1, -1]),
        (["dog"], [3, -1, -1, -1]),  # labels without a name
    ],
)
def test_true_classes_have_the_numbers_of_the_model(
    class_names: list[str] | None, expected: list[int], vit: Callable[..., ViTConfig]
) -> None:
    classes = ImageClassifierConfig(vit(), 4, class_names=CLASSES)
    assert in_numbers_of(classes, Labelled(class_names)).labels.tolist() == expected


def test_labels_have_the_numbers_of_the_model(
    vit: Callable[..., ViTConfig], caplog: pytest.LogCaptureFixture
) -> None:
    classes = ImageClassifierConfig(vit(), 4, class_names=CLASSES)
    images = in_numbers_of(classes, Labelled(["dog", "ant", "wolf"]))
    assert images.labels is not None
    assert (images.labels.tolist(), images.class_names) == ([3, 0, -1, -1], [*CLASSES])
    assert "1 of 4 images are of classes that the model does not have" in caplog.text
    same = Labelled([*CLASSES])
    assert in_numbers_of(classes, same) is same


def test_true_classes_of_a_model_without_names(
    vit: Callable[..., ViTConfig], caplog: pytest.LogCaptureFixture
) -> None:
    classes = ImageClassifierConfig(vit(), 4)
    assert in_numbers_of(classes, Labelled(["3", "0", "1"])).labels.tolist() == [3, 0, 1, -1]
    assert in_numbers_of(classes, Labelled(["a", "b", "c"])).labels.tolist() == [-1] * 4
    assert "no image is marked as right or wrong: the model has no class names" in caplog.text
