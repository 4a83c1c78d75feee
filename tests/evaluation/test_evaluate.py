import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from beit import cli
from beit.data.imagenet_names import wordnet_ids
from beit.data.sources import open_source
from beit.evaluation import evaluate
from beit.evaluation.classify import CropViews
from beit.evaluation.corruptions.corrupt import corrupt
from beit.evaluation.evaluate import Config
from beit.evaluation.imagenet_classes import compared_ids
from beit.nn.heads import ImageClassifier
from beit.weights.file import save_weights

COUNT = 23
DATA = f"shapes://{COUNT}?size=24"  # ten classes, as many as the classifier has
SIZE = (16, 24)


def softmax(classifier: ImageClassifier, images: list[Tensor]) -> np.ndarray:
    with torch.no_grad():
        logits = classifier(torch.stack(images)).double().numpy()
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def centres(border: int = 0) -> list[Tensor]:
    source, view = open_source(DATA), CropViews(SIZE)
    return [view(source.image(index))[0] for index in range(COUNT)]


# ── figures ─────────────────────────────────────────────────────────────────────────────────────


def test_figures_are_those_of_a_plain_loop(
    model: str, classifier: ImageClassifier, config: Any
) -> None:
    record = evaluate.run(config(model)).record
    shares = softmax(classifier, centres())
    truth = [index % 10 for index in range(COUNT)]
    top1 = top5 = nll = 0.0
    by_class: dict[int, list[bool]] = {}
    bins: dict[int, list[tuple[float, bool]]] = {}
    for share, label in zip(shares, truth, strict=True):
        order = sorted(range(10), key=lambda place: -share[place])
        right = order[0] == label
        top1 += right / COUNT
        top5 += (label in order[:5]) / COUNT
        nll -= math.log(share[label]) / COUNT
        by_class.setdefault(label, []).append(right)
        bins.setdefault(math.ceil(share.max() * 15), []).append((share.max(), right))
    ece = sum(abs(sum(c for c, _ in pairs) - sum(r for _, r in pairs)) for pairs in bins.values())
    assert 0 < top1 < top5 < 1
    assert record["figures"] == pytest.approx(
        {
            "top1": top1,
            "top5": top5,
            "mean_per_class": np.mean([np.mean(rights) for rights in by_class.values()]),
            "nll": nll,
            "ece": ece / COUNT,
        },
        rel=1e-5,
    )
    assert [entry["images"] for entry in record["classes"]] == [3, 3, 3] + 7 * [2]
    assert record["images"] == {"evaluated": COUNT, "unreadable": []}


def test_mean_of_probabilities_over_crops_and_mirror_images(
    model: str, classifier: ImageClassifier, config: Any
) -> None:
    record = evaluate.run(config(model, crops=5, flip=True, crop_ratio=0.8)).record
    source, view = open_source(DATA), CropViews(SIZE, 0.8, crops=5)
    views = torch.stack([view(source.image(index)) for index in range(COUNT)], dim=1)  # (5, n, ...)
    seen = [*views, *views.flip(-1)]
    shares = np.mean([softmax(classifier, list(images)) for images in seen], axis=0)
    truth = np.arange(COUNT) % 10
    assert record["figures"]["top1"] == pytest.approx((shares.argmax(axis=1) == truth).mean())
    nll = -np.log(shares[np.arange(COUNT), truth]).mean()
    assert record["figures"]["nll"] == pytest.approx(nll, rel=1e-5)


def test_metrics_are_those_of_the_readable_images_alone(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], config: Any, folder: Any
) -> None:
    names = [f"{number % 10}/{number}.png" for number in range(20)]
    data, readable = (folder(tmp_path / name, *names) for name in ("set", "readable"))
    broken = [names[number] for number in (10, 2, 19)]  # two in one batch of 5, as sorted
    for name in broken:
        (tmp_path / "set" / name).write_bytes(b"no image")
        (tmp_path / "readable" / name).unlink()
    result = evaluate.run(config(model, data, max_unreadable=0.15))
    assert "unreadable, left out" in capsys.readouterr().err
    alone = evaluate.run(config(model, readable))
    assert result.record["images"] == {"evaluated": 17, "unreadable": sorted(broken)}
    assert alone.record["images"] == {"evaluated": 17, "unreadable": []}
    assert result.record["figures"] == pytest.approx(alone.record["figures"], rel=1e-6)
    for name in ("top1", "top5", "mean_per_class"):
        assert result.record["figures"][name] == alone.record["figures"][name]
    assert result.record["classes"] == alone.record["classes"]
    assert result.record["reliability"]["number"] == alone.record["reliability"]["number"]
    lines = {line[:34].strip(): line[34:].strip() for line in result.table.splitlines()}
    assert lines["Images"] == "17"
    assert lines["Unreadable, left out"] == "3"
    with pytest.raises(ValueError, match=r"3 of 20 images cannot be read, .* raise max_unr"):
        evaluate.run(config(model, data, max_unreadable=0.14))


def test_a_set_without_a_readable_image_is_refused(
    tmp_path: Path, config: Any, always: Any, folder: Any
) -> None:
    data = folder(tmp_path / "set", "a/1.png", "b/1.png")
    model = always(tmp_path / "b.safetensors", {1: 5.0}, 2)
    for name in ("a", "b"):
        (tmp_path / "set" / name / "1.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="no image can be read"):
        evaluate.run(config(model, data, max_unreadable=1.0))


def test_class_names_in_another_order(
    tmp_path: Path, config: Any, always: Any, folder: Any
) -> None:
    data = folder(tmp_path / "set", "ant/1.png", "dog/1.png", "dog/2.png")
    names = ("dog", "cat", "ant")
    model = always(tmp_path / "dog.safetensors", {0: 5.0}, 3, class_names=names)
    record = evaluate.run(config(model, data)).record
    assert record["figures"]["top1"] == pytest.approx(2 / 3)
    assert "top5" not in record["figures"]  # of three classes
    assert record["classes"] == [
        {"name": "dog", "images": 2, "top1": 1.0},
        {"name": "ant", "images": 1, "top1": 0.0},
    ]


def test_a_class_of_which_no_image_is_right_is_named(
    tmp_path: Path, config: Any, always: Any, folder: Any
) -> None:
    data = folder(
        tmp_path / "set", *(f"{name}/{n}.png" for name in ("ant", "dog") for n in "12345")
    )
    model = always(tmp_path / "dog.safetensors", {0: 5.0}, 2, class_names=("dog", "ant"))
    result = evaluate.run(config(model, data))
    (note,) = result.record["notes"]
    assert note.startswith("no image of ant is classified correctly (1 of 2 classes); ")
    assert result.table.endswith(note)


# ── ImageNet's sets ─────────────────────────────────────────────────────────────────────────────


def test_the_best_logit_outside_the_200_does_not_count(
    tmp_path: Path, config: Any, always: Any, folder: Any
) -> None:
    for dataset in ("imagenet-a", "imagenet-r"):
        subset = compared_ids(dataset)  # type: ignore[arg-type]
        data = folder(tmp_path / dataset, f"{subset[3]}/1.png", f"{subset[150]}/1.png")
        ids = wordnet_ids()
        outside = next(place for place, name in enumerate(ids) if name not in subset)
        biases = {outside: 9.0, ids.index(subset[3]): 5.0}
        model = always(tmp_path / f"{dataset}.safetensors", biases)
        record = evaluate.run(config(model, data, dataset=dataset)).record
        assert (record["compared_logits"], record["num_classes"]) == (200, 1000)
        assert record["figures"]["top1"] == 0.5
        share = math.exp(5) / (math.exp(5) + 199)  # of all 200, and of no other
        mean = -(math.log(share) + math.log(1 / (math.exp(5) + 199))) / 2
        assert record["figures"]["nll"] == pytest.approx(mean, rel=1e-5)


def test_real_counts_any_label_and_leaves_out_images_without(
    tmp_path: Path, config: Any, always: Any, folder: Any
) -> None:
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in (1, 2, 3)]
    data = folder(tmp_path / "val", *names)  # no label; 970 and 795; 230 and 231
    model = always(tmp_path / "model.safetensors", {795: 5.0})
    record = evaluate.run(config(model, data, dataset="imagenet-real")).record
    assert record["figures"]["top1"] == 0.5
    assert record["images"]["evaluated"] == 2
    assert record["classes"] == []


# ── corruptions ─────────────────────────────────────────────────────────────────────────────────


def test_corruptions_are_those_made_by_hand(
    model: str, classifier: ImageClassifier, config: Any
) -> None:
    kinds = ("fog", "pixelate", "gaussian_noise")
    settings = {"corruptions": kinds, "severities": (2, 5), "seed": 3}
    record = evaluate.run(config(model, num_workers=1, **settings)).record
    images, truth = torch.stack(centres()), np.arange(COUNT) % 10
    found = record["corruptions"]
    for kind in kinds:
        for severity in (2, 5):
            views = corrupt(images, kind, severity, seed=3, indices=range(COUNT))
            right = (softmax(classifier, list(views)).argmax(axis=1) == truth).mean()
            assert found["accuracy"][kind][str(severity)] == pytest.approx(right, abs=1e-6)
        expected = 1 - np.mean(list(found["accuracy"][kind].values()))
        assert found["kind_errors"][kind] == pytest.approx(expected)
    mean = np.mean(list(found["kind_errors"].values()))
    assert record["figures"]["mean_corruption_error"] == pytest.approx(mean)
    assert "mce" not in found


# ── the command ─────────────────────────────────────────────────────────────────────────────────


def test_what_cannot_be_done_is_refused(
    model: str, classifier: ImageClassifier, tmp_path: Path, config: Any
) -> None:
    save_weights(tmp_path / "backbone.safetensors", classifier.backbone)
    with pytest.raises(ValueError, match="holds a VisionTransformer, which names no classes"):
        evaluate.run(config(str(tmp_path / "backbone.safetensors")))
    with pytest.raises(FileExistsError, match="exists and is not overwritten"):
        evaluate.run(config(model, output=str(tmp_path)))
    with pytest.raises(ValueError, match="give --model and --data"):
        evaluate.run(config(""))
    (tmp_path / "evaluate.json").write_text("[]")
    with pytest.raises(ValueError, match="is not a result of beit evaluate"):
        evaluate.run(Config(compare=(str(tmp_path), model)))
    for changes, said in (
        ({"corruptions": ("fogg",)}, r"corruptions: unknown kind 'fogg'; did you mean fog\?"),
        ({"severities": (0,)}, r"severities must be one or more of 1 to 5, got \[0\]"),
        ({"compare": ("a",)}, "compare takes two results or more"),
        ({"reference": "a"}, "reference is for corruptions"),
        ({"present_only": True, "dataset": "imagenet"}, "present_only is for plain data"),
        ({"real_labels": "x.json"}, "real_labels is for --dataset imagenet-real"),
    ):
        with pytest.raises(ValueError, match=said):
            config(model, **changes)  # type: ignore[arg-type]


def test_the_command(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", model, "--data", DATA, "--num_workers", "0"]
    assert cli.main(["evaluate", *options, "--corruptions", "[fog]", "--severities", "[1]"]) == 0
    assert "Mean corruption error, %" in capsys.readouterr().out
    assert cli.main(["evaluate", *options, "--corruptions", "[fogg]"]) == 2
    assert "did you mean fog?" in capsys.readouterr().err
    assert cli.main(["evaluate", *options, "--dataset", "imagenet-x"]) == 2


# ── several processes ───────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_two_processes_tell_what_one_does(model: str, tmp_path: Path) -> None:
    options = ["--model", model, "--data", DATA, "--batch_size", "5", "--num_workers", "0"]
    for processes, place in ((1, "one"), (2, "two")):
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [sys.executable, *(launcher if processes > 1 else []), "-m", "beit", "evaluate"]
        command += [*options, "--corruptions", "[fog]", "--output", str(tmp_path / place)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr.decode()
    one, two = (
        json.loads((tmp_path / place / "evaluate.json").read_text()) for place in ("one", "two")
    )
    for name in ("figures", "classes", "corruptions", "reliability", "images"):
        assert two[name] == one[name]
