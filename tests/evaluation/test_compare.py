import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beit.evaluation import evaluate
from beit.evaluation.compare import mcnemar
from beit.evaluation.evaluate import Config


def test_results_side_by_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: Any, always: Any, folder: Any
) -> None:
    data = folder(
        tmp_path / "set", *(f"{name}/{n}.png" for name in "ab" for n in range(4)), "b/9.png"
    )
    places = [str(tmp_path / name) for name in ("one", "two")]
    for number, place in enumerate(places):
        model = always(tmp_path / f"{number}.safetensors", {number: 2.0}, 2)
        evaluate.run(config(model, data, output=place, corruptions=("fog",)))
    page = (tmp_path / "one" / "report.html").read_text()
    assert "Calibration" in page
    assert "Corrupted images" in page
    assert "mean negative log-likelihood" in page and "expected calibration error" in page
    record = json.loads((tmp_path / "one" / "evaluate.json").read_text())
    assert record["config"]["corruptions"] == ["fog"]
    assert record["environment"]["verb"] == "evaluate"
    with np.load(tmp_path / "one" / "images.npz") as arrays:
        assert arrays["right"].tolist() == 4 * [True] + 5 * [False]
    capsys.readouterr()
    told = evaluate.run(Config(compare=tuple(places), output=str(tmp_path / "both")))
    assert told.table == capsys.readouterr().out.rstrip("\n")
    rows = {" ".join(line.split()[:-3]): line.split()[-3:] for line in told.table.splitlines()}
    assert rows["Top-1, %"] == ["44.4", "55.6", "+11.1"]
    assert rows["Error on fog, %"] == ["55.6", "44.4", "-11.1"]
    assert "Only A is right on 4 images, only B on 5; by chance alone as unequal with p = 1 " in (
        told.table
    )
    assert (tmp_path / "both" / "report.html").is_file()
    files = tuple(f"{place}/evaluate.json" for place in places)
    assert evaluate.run(Config(compare=files)).record[files[0]]["top1"] == pytest.approx(4 / 9)


def test_results_of_different_numbers_of_readable_images_say_so(
    model: str, tmp_path: Path, config: Any, folder: Any
) -> None:
    data = folder(tmp_path / "set", *(f"{number}/1.png" for number in range(10)))
    evaluate.run(config(model, data, output=str(tmp_path / "all")))
    (tmp_path / "set" / "3" / "1.png").write_bytes(b"no image")
    evaluate.run(config(model, data, max_unreadable=0.1, output=str(tmp_path / "nine")))
    compared = evaluate.run(Config(compare=(str(tmp_path / "all"), str(tmp_path / "nine"))))
    assert "Images evaluated: A 10, B 9" in compared.table
    assert "Images of A" not in compared.table


def test_images_that_are_the_same_by_name_only_say_so(
    model: str, tmp_path: Path, config: Any, folder: Any
) -> None:
    places = []
    for stain in ("blue", "red"):
        data = folder(tmp_path / stain, *(f"{number}/1.png" for number in range(10)))
        places.append(str(tmp_path / f"on {stain}"))
        evaluate.run(config(model, data, output=places[-1]))
    table = evaluate.run(Config(compare=tuple(places))).table
    of = f"A {tmp_path}/blue, B {tmp_path}/red"
    assert f"Images of {of}: the same by names and classes; check that they are" in table


def test_the_result_of_a_segmenter_does_not_compare(tmp_path: Path) -> None:
    (tmp_path / "evaluate.json").write_text('{"figures": {"miou": 0.5}, "classes": []}')
    with pytest.raises(ValueError, match=r"json is the evaluation of a segmenter; --compare"):
        evaluate.run(Config(compare=(str(tmp_path), str(tmp_path / "evaluate.json"))))


def test_results_of_other_images_do_not_compare(model: str, tmp_path: Path, config: Any) -> None:
    for place, limit in (("one", 5), ("two", 6)):
        evaluate.run(config(model, limit=limit, output=str(tmp_path / place)))
    with pytest.raises(ValueError, match=r"one and .*two are not of the same images"):
        evaluate.run(Config(compare=(str(tmp_path / "one"), str(tmp_path / "two"))))


def test_mcnemar_by_hand() -> None:
    assert mcnemar(1, 4) == pytest.approx(2 * (1 + 5) / 32)
    assert mcnemar(4, 1) == mcnemar(1, 4)
    assert mcnemar(0, 0) == mcnemar(3, 3) == 1
    tail = Fraction(2 * sum(math.comb(1500, k) for k in range(701)), 2**1500)
    assert mcnemar(800, 700) == pytest.approx(float(tail))  # 2^1500 is beyond what floats hold
    with pytest.raises(ValueError, match="must not be negative, got -1 and 2"):
        mcnemar(-1, 2)
