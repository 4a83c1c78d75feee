import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from beit.data.sources import open_source
from beit.data.views import EvalView
from beit.draw.report import Section
from beit.nn.dvae import DiscreteVAE, DiscreteVAEConfig
from beit.nn.heads import ImageClassifier, ImageClassifierConfig
from beit.nn.masking import MaskConfig
from beit.nn.mim import MaskedImageModel, MaskedImageModelConfig
from beit.nn.tokenizer import VQKD, VQKDConfig
from beit.nn.vit import ViTConfig
from beit.pictures import tokens as visualise_tokens
from beit.pictures.token_models import open_models, open_teacher, predict_tokens, sample_masks
from beit.pictures.tokens import Config
from beit.run.device import DeviceConfig
from beit.weights.file import save_weights
from beit.weights.open import load_tokenizer

CPU = DeviceConfig(accelerator="cpu")
DATA = "shapes://2?size=24"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, vit: Callable[..., ViTConfig]) -> Path:
    """A folder of small models with random weights, on a grid of 2 x 3."""
    folder = tmp_path_factory.mktemp("tokens")
    torch.manual_seed(0)
    encoder = vit(absolute_positions=True, relative_bias="none", layer_scale=None)
    vqkd = VQKDConfig(encoder, decoder_depth=1, num_codes=11, code_width=5, teacher_width=7)
    mim = MaskedImageModelConfig(vit(), num_codes=11, early_layers=1, head_layers=1)
    pixels = MaskedImageModelConfig(
        vit(), num_codes=0, early_layers=1, predicts="pixels", target_width=192
    )
    dvae = DiscreteVAEConfig(
        image_size=(16, 24), num_codes=11, code_width=4, num_layers=3, hidden_width=8
    )
    models = {
        "vqkd": VQKD(vqkd),
        "mim": MaskedImageModel(mim),
        "pixels": MaskedImageModel(pixels),
        "dvae": DiscreteVAE(dvae),
        "classifier": ImageClassifier(ImageClassifierConfig(vit(), 4)),
    }
    for name, model in models.items():
        save_weights(folder / f"{name}.safetensors", model.eval())
    return folder


def config(files: Path, model: str, output: Path, **changes: Any) -> Config:
    settings = {"data": DATA, "output": str(output), "device": CPU}
    if "tokenizer" in changes:
        changes["tokenizer"] = str(files / f"{changes['tokenizer']}.safetensors")
    return Config(model=str(files / f"{model}.safetensors"), **(settings | changes))


def test_a_tokenizer_gives_tokens_and_the_decoders_features(files: Path, tmp_path: Path) -> None:
    report, images = visualise_tokens.run(config(files, "vqkd", tmp_path / "out"))
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["features.png", "features.svg", "report.html", "tokens.png", "tokens.svg"]
    assert images == 2
    page = report.read_text()
    assert "Predictions" not in page
    assert "shapes" in page


@pytest.mark.parametrize("tokenizer", ["vqkd", "dvae"])
def test_a_pretrained_model_gives_predictions_too(
    files: Path, tmp_path: Path, tokenizer: str
) -> None:
    settings = {"tokenizer": tokenizer, "mask": MaskConfig(count=2, min_block=1), "limit": 1}
    report, _ = visualise_tokens.run(config(files, "mim", tmp_path / "out", **settings))
    assert (tmp_path / "out" / "predictions.png").is_file()
    assert (tmp_path / "out" / "features.png").is_file() == (tokenizer == "vqkd")
    assert "of 2" in report.read_text()


@torch.no_grad()
def test_probabilities_are_the_models_softmax(files: Path, tmp_path: Path) -> None:
    settings = config(files, "mim", tmp_path, tokenizer="vqkd")
    models = open_models(settings.model, settings.tokenizer, torch.device("cpu"), {})
    masked = sample_masks(settings.model, None, models.grid, 2, seed=0)
    assert masked.shape == (2, 2)  # 40% of six patches
    images = torch.randint(256, (2, 3, 16, 24), dtype=torch.uint8)
    codes = models.tokenizer.encode(images)
    assert models.predictor is not None
    for n, prediction in enumerate(predict_tokens(models.predictor, images, masked, codes).each()):
        probabilities = models.predictor(images, masked).logits[n].softmax(-1)
        torch.testing.assert_close(prediction.probability, probabilities.amax(-1))
        assert prediction.codes.tolist() == probabilities.argmax(-1).tolist()
        expected = [probabilities[m, codes[n, patch]] for m, patch in enumerate(masked[n])]
        torch.testing.assert_close(prediction.true_probability, torch.stack(expected))


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        ("classifier", {}, "is an ImageClassifier, which neither makes tokens nor predicts"),
        ("pixels", {}, "predicts pixels, not tokens; expected a tokenizer"),
        ("mim", {}, "does not say which tokenizer it was trained with"),
        ("vqkd", {"tokenizer": "vqkd"}, "is a tokenizer itself; leave tokenizer out"),
        ("vqkd", {"teacher": "run"}, "does not say which teacher it had; name one"),
        ("dvae", {"teacher": "run"}, "DiscreteVAE, which decodes no features; leave teacher"),
        (
            "mim",
            {"tokenizer": "vqkd", "mask": MaskConfig(count=7)},
            "mask.count is 7, but an image has 6 patches",
        ),
    ],
)
def test_models_without_tokens_are_refused_and_nothing_is_written(
    files: Path, tmp_path: Path, model: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        visualise_tokens.run(config(files, model, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_a_run_names_its_tokenizer_masks_and_teacher(
    trained_tokenizer: Path, files: Path, tmp_path: Path
) -> None:
    made = tmp_path / "mim"
    made.mkdir()
    (made / "weights.safetensors").write_bytes((files / "mim.safetensors").read_bytes())
    (made / "environment.json").write_text('{"verb": "pretrain"}')
    lines = f"tokenizer: {trained_tokenizer}\nmask: {{count: 3, min_block: 1}}\n"
    (made / "config.yaml").write_text(lines)
    settings = Config(str(made), DATA, str(tmp_path / "out"), 1, teacher="run", device=CPU)
    report = visualise_tokens.run(settings).report.read_text()
    assert "of 3" in report
    assert "teacher" in report
    (made / "config.yaml").write_text("tokenizer: gone/away\n")
    with pytest.raises(ValueError, match="tokenizer gone/away, which does not exist; name its"):
        visualise_tokens.run(Config(str(made), DATA, str(tmp_path / "two"), device=CPU))


@pytest.fixture
def drawn_by(monkeypatch: pytest.MonkeyPatch) -> Callable[[Config], list[torch.Tensor]]:
    """A function that returns the images and the codes that a command draws."""
    drawn: list[torch.Tensor] = []

    def token_section(_: Path, images: torch.Tensor, codes: torch.Tensor, *others: Any) -> Section:
        drawn[:] = images, codes
        return Section("Tokens")

    monkeypatch.setattr(visualise_tokens, "token_section", token_section)
    return lambda config: [visualise_tokens.run(config)] and drawn


def test_the_tokenizer_sees_images_at_its_own_size(
    files: Path,
    tmp_path: Path,
    vit: Callable[..., ViTConfig],
    drawn_by: Callable[[Config], list[torch.Tensor]],
) -> None:
    small = vit(image_size=(8, 12), patch_size=4)
    model = MaskedImageModel(MaskedImageModelConfig(small, 11, early_layers=1, head_layers=1))
    save_weights(tmp_path / "small.safetensors", model)
    settings = config(files, "mim", tmp_path / "out", tokenizer="vqkd")
    images, codes = drawn_by(replace(settings, model=str(tmp_path / "small.safetensors")))
    assert images.shape == (2, 3, 8, 12)
    source, view = open_source(DATA), EvalView((16, 24), 1.0)
    whole = torch.stack([view(source.image(index)) for index in range(2)])
    assert torch.equal(codes, load_tokenizer(settings.tokenizer).encode(whole))


def test_tokenizer_and_teacher_see_the_channels_that_their_runs_name(
    trained_tokenizer: Path,
    files: Path,
    tmp_path: Path,
    drawn_by: Callable[[Config], list[torch.Tensor]],
) -> None:
    tokenizer, made = tmp_path / "tokenizer", tmp_path / "mim"
    shutil.copytree(trained_tokenizer, tokenizer)
    settings = yaml.safe_load((tokenizer / "config.yaml").read_text())
    settings["teacher"]["channels"] = [3, 2, 1]
    (tokenizer / "config.yaml").write_text(yaml.safe_dump(settings))
    made.mkdir()
    (made / "weights.safetensors").write_bytes((files / "mim.safetensors").read_bytes())
    (made / "environment.json").write_text('{"verb": "pretrain"}')
    (made / "config.yaml").write_text(f"tokenizer: {tokenizer}\ntarget: {{channels: [3, 2, 1]}}\n")
    images, codes = drawn_by(Config(str(made), DATA, str(tmp_path / "out"), device=CPU))
    encode = load_tokenizer(tokenizer).encode
    assert torch.equal(codes, encode(images.flip(1)))
    assert not torch.equal(codes, encode(images))
    models = open_models(str(tokenizer), "", torch.device("cpu"), {})
    assert open_teacher("run", models).channels == (3, 2, 1)


def test_small_images_are_listed_and_odd_names_are_text(files: Path, tmp_path: Path) -> None:
    pixels = open_source(DATA).image(0).permute(1, 2, 0).numpy()
    odd, tiny = tmp_path / "<svg onload=alert(1)>\"'字.png", tmp_path / "tiny.png"
    Image.fromarray(pixels).save(odd)
    Image.fromarray(pixels[:, :7]).save(tiny)
    with pytest.raises(ValueError, match=r"none of 1 images .* 24 x 7 pixels, smaller"):
        visualise_tokens.run(config(files, "vqkd", tmp_path / "none", data=[str(tiny)]))
    output = tmp_path / "out"
    settings = config(files, "vqkd", output, data=[str(tiny), str(odd)])
    page = visualise_tokens.run(settings).report.read_text()
    assert "<svg onload" not in page
    assert "&lt;svg onload=alert(1)&gt;&#34;&#39;字.png" in page
    with pytest.raises(FileExistsError, match="exists and is not overwritten"):
        visualise_tokens.run(settings)
