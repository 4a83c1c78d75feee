import json

import pytest
import torch

from beit.evaluation.imagenet import open_task


@pytest.fixture
def objectnet(layout, tmp_path):
    """Four folders, of which two map to classes 3 and (1, 2) of ImageNet."""
    root = tmp_path / "objectnet-1.0"
    names = ("bicycle/a.png", "bicycle/b.png", "t-shirt/a.png", "air_freshener/a.png")
    layout(*names, root=root / "images")
    mappings = root / "mappings"
    mappings.mkdir()
    folders = {"bicycle": "Bicycle", "t-shirt": "T-shirt", "air_freshener": "Air freshener"}
    overlap = {"T-shirt": "jersey, T-shirt", "Bicycle": "mountain bike; tandem, two"}
    lines = {"0": 2, "1": 3, "2": 0, "3": 1}  # number of the sorted ids: line, from 0
    for name, content in (
        ("folder_to_objectnet_label", folders),
        ("objectnet_to_imagenet_1k", overlap),
        ("pytorch_to_imagenet_2012_id", lines),
    ):
        (mappings / f"{name}.json").write_text(json.dumps(content))
    words = "tandem, two\njersey, T-shirt\nkit fox\nmountain bike\n"
    (mappings / "imagenet_to_label_2012_v2").write_text(words)
    return root


def test_any_class_that_a_folder_maps_to_is_right(objectnet):
    for spec in (objectnet, objectnet / "images"):
        task = open_task(str(spec), "objectnet", 1000, None)
        assert [task.source.name(index)[:2] for index in range(3)] == ["bi", "bi", "t-"]
        assert task.targets.tolist() == [[1, 2], [1, 2], [3, -1]]
        assert torch.equal(task.columns, torch.arange(1000))  # all compete
        assert task.labels.tolist() == [0, 0, 1]
        assert task.class_names == ["Bicycle", "T-shirt"]
        assert task.border == 2
        shares = "2 of 3 class folders are of classes that ImageNet has"
        assert task.notes == [f"{shares}; images of the others, left out: 1"]


def test_objectnet_without_its_mappings_or_with_a_strange_folder_is_refused(objectnet, layout):
    layout("t_shirt/a.png", root=objectnet / "images")
    with pytest.raises(ValueError, match="t_shirt is not a class folder of ObjectNet"):
        open_task(str(objectnet), "objectnet", 1000, None)
    (objectnet / "mappings" / "imagenet_to_label_2012_v2").write_text("kit fox\n")
    with pytest.raises(ValueError, match="mappings: its files do not fit together"):
        open_task(str(objectnet), "objectnet", 1000, None)
    (objectnet / "mappings" / "objectnet_to_imagenet_1k.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"objectnet_to_imagenet_1k\.json is missing"):
        open_task(str(objectnet), "objectnet", 1000, None)
