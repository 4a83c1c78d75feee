from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beit.data.imagenet_names import wordnet_ids
from beit.evaluation import evaluate
from beit.evaluation.corruptions.corrupt import ALEXNET_ERRORS, KINDS


def test_mce_is_relative_to_a_reference_or_on_imagenet_to_alexnet(
    tmp_path: Path, config: Any, always: Any, folder: Any
) -> None:
    ids = wordnet_ids()
    data = folder(tmp_path / "val", f"{ids[1]}/1.png", f"{ids[1]}/2.png", f"{ids[2]}/1.png")
    one = always(tmp_path / "one.safetensors", {1: 5.0})
    two = always(tmp_path / "two.safetensors", {2: 5.0})
    settings = {"dataset": "imagenet", "corruptions": "all"}
    first = evaluate.run(config(two, data, output=str(tmp_path / "two"), **settings)).record
    relative = [2 / 3 / ALEXNET_ERRORS[kind] for kind in KINDS]
    assert first["corruptions"]["reference"] == "AlexNet"
    assert first["figures"]["mce"] == pytest.approx(np.mean(relative), rel=1e-5)
    settings["reference"] = str(tmp_path / "two")
    second = evaluate.run(config(one, data, **settings))
    assert second.record["figures"]["mce"] == pytest.approx(1 / 2, rel=1e-5)
    assert f"The reference of mCE is {tmp_path / 'two'}." in second.table
    note = "the same by names and classes; check that they are"
    assert note not in second.table
    other = Path(data).rename(tmp_path / "other")
    of = f"Images of the reference {data}, this evaluation {other}"
    assert f"{of}: {note}" in evaluate.run(config(one, str(other), **settings)).table
    other.rename(data)
    with pytest.raises(ValueError, match="reference takes means over severities 1 to 5, got"):
        evaluate.run(config(one, data, **(settings | {"severities": (1,)})))
    with pytest.raises(ValueError, match="not of the same images"):
        evaluate.run(config(one, data, limit=2, **settings))
