import pytest

from beit import cli
from beit.command import presets
from beit.command.options import nested
from beit.command.verbs import VERBS
from beit.run.directory import RunDirectory


def test_presets_lists_and_prints(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(presets, "FOLDER", tmp_path)
    (tmp_path / "tiny.yaml").write_text("\n# A toy.\n# More.\nprobe: {}\nexport: {}\n")
    (tmp_path / "other.yaml").write_text("# Only probes.\nprobe: {}\n")
    assert cli.main(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "other  Only probes.",
        "       probe",
        "tiny   A toy.",
        "       probe, export",
    ]
    assert cli.main(["presets", "tiny"]) == 0
    assert capsys.readouterr().out == (tmp_path / "tiny.yaml").read_text()
    assert cli.main(["presets", "tin"]) == 2
    assert "there is no preset 'tin'; did you mean tiny?" in capsys.readouterr().err


@pytest.mark.parametrize("name", presets.names())
def test_every_shipped_preset_is_read_and_has_a_headline(name):
    parts = presets.read_yaml(presets.path_of(name))
    assert parts
    assert parts.keys() <= VERBS.keys()
    assert presets.headline(name)


def test_numbers_without_a_point_are_numbers(tmp_path):
    (tmp_path / "a.yaml").write_text("a: 1e-3\nb: -2E5\nc: 1e\n")
    assert presets.read_yaml(tmp_path / "a.yaml") == {"a": 1e-3, "b": -2e5, "c": "1e"}


def test_a_mixture_needs_no_quotes(tmp_path):
    text = "pretrain:\n  data:\n    train: {photos: 0.7, shards/*.tar: 1}\n    limit: 3\n"
    (tmp_path / "a.yaml").write_text(text)
    data = {"train": "{photos: 0.7, shards/*.tar: 1}", "limit": 3}
    assert presets.read_yaml(tmp_path / "a.yaml") == {"pretrain": {"data": data}}
    assert nested(["--data.train={a: 1, b: 2}", "--check.train", "2024"]) == {
        "data": {"train": "{a: 1, b: 2}"},
        "check": {"train": "2024"},
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\nb: *" + "n" * 5000, "found undefined alias"),
        ("a: !!int " + "x" * 5000, "invalid literal"),
        ("a: !!bool " + "maybe" * 1000, "maybe"),
        ("a: !!timestamp soon", "NoneType"),
        ("a: " + "9" * 5000, "4300 digits"),
        ("a: !" + "t " * 5000, "could not determine a constructor"),
    ],
)
def test_what_is_no_yaml_is_named_in_a_few_words(text, reason, tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"x.yaml is not valid YAML: (.|\n)*{reason}") as error:
        presets.read_yaml(file)
    assert len(str(error.value)) < 500 + len(str(file))
    with pytest.raises(ValueError, match=r"config.yaml is not valid YAML"):
        RunDirectory(file.rename(tmp_path / "config.yaml").parent).config()


def test_a_value_that_is_no_yaml_is_text():
    for text in ("!!bool maybe", "9" * 5000, "*gone", "[1"):
        assert presets.plain(text) == text
