from pathlib import Path

from beit.run.finished import kept_step, last_validation


def test_a_metric_that_is_not_finite_is_not_the_best(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"  # of label maps without a labelled pixel, then with some
    lines = ['{"step": 2, "val_miou": null}', '{"step": 4, "val_miou": null}']
    log.write_text("\n".join([*lines, ""]))
    assert kept_step(log, "val_miou") == 4
    log.write_text("\n".join([*lines, '{"step": 6, "val_miou": 0.5}', '{"step": 8}', ""]))
    assert kept_step(log, "val_miou") == 6
    assert last_validation(log, "best") == {"val_miou": 0.5}
