import json
import re

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from beit.exporting.card import model_card, read_metadata
from beit.run.directory import RunDirectory
from beit.run.environment import environment
from beit.weights.file import save_weights

CONFIG = {
    "data": {"train": "some/train.parquet", "validation": "", "limit": 17, "num_workers": 3},
    "teacher": {"source": "efficientnet-lite0", "image_size": None},
    "optim": {"epochs": 5, "learning_rate": 0.25},
    "run": {"output": "runs/x"},
}
LOG = [
    {"step": 3, "epoch": 1.0, "rate": 0.1, "loss": 0.9, "val_loss": 0.75},
    {"step": 6, "epoch": 2.0, "rate": 0.2, "loss": 0.125},
    {"step": 6, "warning": "the codebook is collapsing"},
]


@pytest.fixture
def run(tmp_path, tokenizer):
    run = RunDirectory.create(tmp_path / "run", CONFIG, environment("train-tokenizer"))
    save_weights(run.weights_file, tokenizer)
    run.metrics_file.write_text("".join(f"{json.dumps(record)}\n" for record in LOG))
    return run


def test_the_head_is_one_that_the_hub_reads(run):
    card = ModelCard(model_card(run, "me/mine", {}, license="mit"))
    assert card.data.library_name == "beit"
    assert card.data.license == "mit"
    assert card.data.pipeline_tag == "image-feature-extraction"
    assert card.data.tags == ["beit", "train-tokenizer", "vqkd"]
    assert ModelCard(model_card(run, "me/mine", {})).data.license is None


def test_data_recipe_and_last_scores_are_in_the_card(run, tokenizer):
    card = model_card(run, "me/mine", {})
    count = sum(tensor.numel() for tensor in tokenizer.state_dict().values())
    assert f"Trained by `beit train-tokenizer`; {count:,} values" in card
    assert "train `some/train.parquet`, limit `17`\n" in card  # no workers, no empty fields
    assert "- teacher: source `efficientnet-lite0`\n" in card
    assert "- optim: epochs `5`, learning_rate `0.25`\n" in card
    assert "| `val_loss` | 0.75 | 3 |\n| `loss` | 0.125 | 6 |\n" in card
    assert "collapsing" not in card
    assert f"torch `{torch.__version__}`" in card
    whole = re.search(r"```yaml\n(.*?)```", card, re.DOTALL)
    assert whole is not None
    assert yaml.safe_load(whole[1]) == CONFIG


def test_scores_are_those_of_the_weights_that_were_kept(run):
    values = [(2, 0.5, 1.5), (4, 0.75, 1.25), (6, 0.75, 1.0), (8, 0.25, 0.5)]
    lines = [{"step": s, "val_top1": top1, "val_loss": loss} for s, top1, loss in values]
    lines.insert(1, {"step": 3, "loss": 2.5, "note": "a text"})
    run.metrics_file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    best, last = (
        "| `val_top1` | 0.75 | 4 |\n| `val_loss` | 1.25 | 4 |\n",
        "| `val_top1` | 0.25 | 8 |",
    )
    assert last in model_card(run, "me/mine", {})
    run.config_file.write_text("keep: best\n")
    card = model_card(run, "me/mine", {})
    assert best in card and last not in card and "| `loss` | 2.5 | 3 |" in card


def test_accuracies_of_a_probe_are_in_the_card(run, tmp_path):
    record = {"rows": [{"features": "cls", "linear": 0.3824, "knn": 0.27}]}
    record |= {"config": {"test": "some/test"}, "sizes": {"test": 91}}
    (tmp_path / "probe.json").write_text(json.dumps(record))
    card = model_card(run, "me/mine", {}, tmp_path / "probe.json")
    assert "on 91 images of `some/test`" in card
    assert "| `cls` | 38.2 | 27.0 |\n" in card
    (tmp_path / "probe.json").write_text('{"rows": []}')
    with pytest.raises(ValueError, match=r"probe\.json is not the record of a beit probe"):
        model_card(run, "me/mine", {}, tmp_path / "probe.json")


def test_a_run_without_a_log_has_no_scores(run):
    run.metrics_file.unlink()
    assert "None were logged." in model_card(run, "me/mine", {})


def test_the_code_of_the_card_runs(run, tokenizer, hugging_face):
    hugging_face("weights.safetensors", run.weights_file.read_bytes())
    card = model_card(run, "owner/name", {run.weights_file.name: run.weights_file})
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code is not None
    images = torch.rand(2, 3, 12, 20, generator=torch.Generator().manual_seed(0))
    names = {"images": images}
    with torch.no_grad():
        exec(code[1], names)
        assert torch.equal(names["codes"], tokenizer.encode(images))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"vit.safetensors": ""}, 'beit.load_tokenizer("hf://me/mine/vit.safetensors")'),
        ({"model.safetensors": ""}, 'beit.load_tokenizer("hf://me/mine")'),
        ({"config.json": '{"model_type": "beit"}'}, 'AutoModel.from_pretrained("me/mine")'),
        ({"config.json": '{"architecture": "x"}'}, 'timm.create_model("hf-hub:me/mine"'),
        ({"vit.onnx": ""}, 'hf_hub_download("me/mine", "vit.onnx")'),
        ({"notes.txt": ""}, "## Use\n\nSee the files."),
    ],
)
def test_the_card_describes_how_to_open_each_export(run, tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert expected in model_card(run, "me/mine", {name: tmp_path / name for name in files})


def test_what_is_no_weights_file_of_ours_is_refused(tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"weights\.safetensors is not a weights file of beit"):
        read_metadata(tmp_path / "weights.safetensors")
