import json
from pathlib import Path

from beit.comparison.results import read_metrics


def test_metrics_of_a_training_are_the_last_or_the_best(tmp_path: Path) -> None:
    lines = [{"step": 1, "val_top1": 0.4, "loss": 2}, {"step": 2, "val_top1": 0.6, "val_loss": 1}]
    lines += [{"step": 3, "val_top1": 0.5, "val_loss": 3, "loss": None}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    (tmp_path / "config.yaml").write_text("keep: last")
    last = read_metrics(tmp_path)
    assert (last["val_top1"], last["val_loss"]) == (0.5, 3)
    (tmp_path / "config.yaml").write_text("keep: best")
    best = read_metrics(tmp_path)
    assert (best["val_top1"], best["val_loss"]) == (0.6, 1)


def test_metrics_of_a_probe_have_the_score_and_the_features_in_their_names(tmp_path: Path) -> None:
    rows = [
        {"features": "cls", "paper": False, "linear": 0.5, "knn": 0.25},
        {"features": "mean", "paper": True, "linear": 0.75, "knn": None},
    ]
    attentive = [{"features": "attentive", "attentive": 0.8}]
    record = {"rows": rows, "attentive": attentive, "environment": {}}
    (tmp_path / "probe.json").write_text(json.dumps(record))
    assert read_metrics(tmp_path) == {
        "linear.cls": 0.5,
        "knn.cls": 0.25,
        "linear.mean": 0.75,
        "linear.paper": 0.75,
        "attentive": 0.8,
    }
