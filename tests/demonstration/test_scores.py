from beit.demonstration import scores
from beit.probing import probe


def results(linear: float, knn: float) -> probe.Result:
    row = {"features": "cls", "linear": linear, "knn": knn}
    return probe.Result([row], "", [], chance=0.1, images=60)  # type: ignore[list-item]


def test_the_gain_is_told_beside_chance_untrained_and_the_teacher() -> None:
    probes = {
        scores.UNTRAINED: results(0.2, 0.3),
        scores.PRETRAINED: results(0.36, 0.25),
        scores.ENCODER: results(0.37, 0.2),
        scores.TEACHER: results(0.84, 0.8),
    }
    linear, knn = scores.gained(probes).values()
    assert linear.value == "+16.0 points"
    assert linear.beside == (
        "36.0% of 60 images right; untrained 20.0%, chance 10.0%, teacher 84.0%: "
        "25.0% of the way from untrained to the teacher"
    )
    assert knn.value == "-5.0 points"
    assert "of the way" not in knn.beside
    assert "encoder is ahead of the backbone" in scores.learned(probes)
    assert scores.learned({**probes, scores.ENCODER: results(0.36, 0.9)}) == scores.GAIN
    table = scores.probe_table(probes)
    assert table.caption == "Accuracy on 60 images never trained on, in percent."
    assert table.rows[0] == ["chance: always the most frequent class", *["10.0"] * 4]
    assert table.rows[2] == ["pretrained backbone", "36.0", "–", "25.0", "–"]
