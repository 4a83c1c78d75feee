import json

import pytest
import torch

from beit.data.imagenet_names import wordnet_ids
from beit.evaluation.imagenet import open_task
from beit.evaluation.imagenet_classes import compared_ids


def number(wordnet_id: str) -> int:
    return wordnet_ids().index(wordnet_id)


# ── ImageNet-A, -R, -Sketch ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dataset", ["imagenet-a", "imagenet-r"])
def test_the_right_200_logits_are_compared(dataset, layout):
    subset = compared_ids(dataset)
    root = layout(f"{subset[7]}/x.jpg", f"{subset[199]}/y.jpg", "README.txt")
    task = open_task(root, dataset, 1000, None)
    assert task.columns.tolist() == [number(wordnet_id) for wordnet_id in subset]
    assert task.targets.tolist() == [[7], [199]]
    assert task.labels.tolist() == [7, 199]
    assert task.class_names == subset
    assert task.notes[0].startswith(f"198 of the 200 class folders are missing ({subset[0]}, ")


def test_a_classifier_with_other_order_is_matched_by_wordnet_id(layout):
    subset = compared_ids("imagenet-a")
    names = tuple(reversed(wordnet_ids()))
    task = open_task(layout(f"{subset[7]}/x.jpg"), "imagenet-a", 1000, names)
    assert task.columns.tolist() == [999 - number(wordnet_id) for wordnet_id in subset]
    # 200 classes that are the set's own will do
    task = open_task(layout(f"{subset[7]}/x.jpg"), "imagenet-a", 200, tuple(subset))
    assert task.columns.tolist() == list(range(200))


def test_a_folder_of_another_class_is_refused_by_name(layout, tmp_path):
    subset = compared_ids("imagenet-a")
    other = next(name for name in wordnet_ids() if name not in subset)
    root = layout(f"{subset[0]}/x.jpg", f"{other}/x.jpg")
    with pytest.raises(
        ValueError, match=f"{other} is not a class folder of imagenet-a; .* its 200"
    ):
        open_task(root, "imagenet-a", 1000, None)
    root = layout(f"{subset[0]}0/x.jpg", root=tmp_path / "b")
    with pytest.raises(
        ValueError, match=f"{subset[0]}0 is not a class .*; did you mean {subset[0]}"
    ):
        open_task(root, "imagenet-a", 1000, None)


def test_sketch_compares_all(layout):
    task = open_task(layout("n01443537/x.jpg"), "imagenet-sketch", 1000, None)
    assert task.columns.tolist() == list(range(1000))
    assert task.targets.tolist() == [[1]]


def test_what_is_no_classifier_of_imagenet_is_refused(layout):
    root = layout("n01443537/x.jpg")
    with pytest.raises(ValueError, match="10 classes and no class names; ImageNet's sets need"):
        open_task(root, "imagenet", 10, None)
    with pytest.raises(ValueError, match=r"1000 classes and names such as 0; .*--dataset plain"):
        open_task(root, "imagenet", 1000, tuple(map(str, range(1000))))
    with pytest.raises(ValueError, match="lacks 999 of the 1000 classes"):
        open_task(root, "imagenet", 1, ("n01443537",))


def test_words_for_the_classes_in_their_order_will_do(layout):
    from timm.data.imagenet_info import ImageNetInfo

    words = tuple(ImageNetInfo().label_descriptions())  # as in transformers' files
    root = layout("n01443537/x.jpg")
    assert words[1] == "goldfish, Carassius auratus"
    assert open_task(root, "imagenet", 1000, words).targets.tolist() == [[1]]
    with pytest.raises(ValueError, match="names such as"):
        open_task(root, "imagenet", 1000, words[1:] + words[:1])


# ── ImageNet-V2 ─────────────────────────────────────────────────────────────────────────────────


def test_folders_named_by_numbers_are_not_sorted_as_text(layout):
    root = layout("2/x.jpg", "10/x.jpg", "999/x.jpg")  # as text: 10, 2, 999
    task = open_task(root, "imagenet-v2", 1000, None)
    assert [task.source.name(index) for index in range(3)] == ["10/x.jpg", "2/x.jpg", "999/x.jpg"]
    assert task.targets.tolist() == [[10], [2], [999]]
    reverse = open_task(root, "imagenet-v2", 1000, tuple(reversed(wordnet_ids())))
    assert reverse.columns[reverse.targets].tolist() == [[989], [997], [0]]


def test_a_number_out_of_range_is_refused(layout):
    with pytest.raises(
        ValueError, match="1000 is not a class folder of imagenet-v2; expected a numb"
    ):
        open_task(layout("2/x.jpg", "1000/x.jpg"), "imagenet-v2", 1000, None)


# ── ReaL ────────────────────────────────────────────────────────────────────────────────────────


def val(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def test_real_labels_are_found_by_file_name_in_any_layout(layout):
    # timm's labels of images 1 to 4: none, [970, 795], [230, 231], [809]
    flat = open_task(layout(val(4), val(1), val(2)), "imagenet-real", 1000, None)
    assert [flat.source.name(index) for index in range(2)] == [val(2), val(4)]
    assert flat.targets.tolist() == [[970, 795], [809, -1]]
    assert flat.labels is None
    assert flat.notes == ["images without a label of ReaL's, left out: 1"]


def test_a_labels_file_may_be_given(layout, tmp_path):
    labels = tmp_path / "real.json"
    labels.write_text("[[5], [], [6, 7]]")
    root = layout(f"n01440764/{val(1)}", f"n02007558/{val(2)}", f"n02007558/{val(3)}")
    task = open_task(root, "imagenet-real", 1000, None, real_labels=str(labels))
    assert task.targets.tolist() == [[5, -1], [6, 7]]
    with pytest.raises(ValueError, match=r"number 4; .*real\.json has labels of 1 to 3"):
        open_task(layout(val(4)), "imagenet-real", 1000, None, real_labels=str(labels))
    labels.write_text("[[1000]]")
    with pytest.raises(ValueError, match="does not hold ReaL's labels"):
        open_task(root, "imagenet-real", 1000, None, real_labels=str(labels))


def test_images_with_other_names_are_refused(layout):
    with pytest.raises(ValueError, match=r"cat\.JPEG is not named like ImageNet's validation"):
        open_task(layout("cat.JPEG"), "imagenet-real", 1000, None)


# ── ObjectNet ───────────────────────────────────────────────────────────────────────────────────


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
