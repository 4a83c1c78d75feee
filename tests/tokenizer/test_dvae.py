import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import beit
from beit.data.batches import DataConfig, TrainBatches
from beit.data.order import step_generator
from beit.data.sources import open_source
from beit.data.views import TrainViews, ViewConfig
from beit.nn.dvae import DiscreteVAE, DiscreteVAEConfig, gumbel_noise, reconstruction_loss
from beit.run.device import DeviceConfig
from beit.run.directory import RunConfig
from beit.run.resume import redraw, resume
from beit.tokenizer import dvae as train_dvae
from beit.tokenizer import dvae_loop
from beit.tokenizer.dvae import AnnealConfig, Config
from beit.tokenizer.dvae_loop import total_loss

Interrupt = Callable[..., None]
Records = Callable[[Path], list[dict[str, Any]]]
Check = Callable[..., None]


def config(output: Path, **changes: Any) -> Config:
    """A run of ten steps: checkpoints at 4, 8, 10, log lines at these and at 3, 6, 9."""
    settings: dict[str, Any] = {
        "data": DataConfig(
            train="shapes://43?size=24",
            validation="shapes://13?size=24&seed=1",
            num_workers=0,
        ),
        "view": ViewConfig(min_scale=0.5, color_jitter=0.0),
        "model": DiscreteVAEConfig(
            image_size=(16, 24), num_codes=11, code_width=5, num_layers=2, hidden_width=6
        ),
        "temperature": AnnealConfig(1.0, 0.5, share=0.5),
        "kl_weight": AnnealConfig(0.0, 1e-3, share=0.2),
        "frechet_images": 0,
        "run": RunConfig(str(output), log_every=3, checkpoint_every=4),
        "device": DeviceConfig(accelerator="cpu"),
    }
    return Config(**(settings | changes))


@pytest.fixture(name="config")
def _config(optim: Callable[..., Any]) -> Callable[..., Config]:
    def make(output: Path, **changes: Any) -> Config:
        return config(output, **({"optim": optim()} | changes))

    return make


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, optim: Callable[..., Any]) -> Path:
    """The directory of a finished run."""
    output = tmp_path_factory.mktemp("dvae") / "run"
    train_dvae.run(config(output, optim=optim()))
    return output


def test_a_run_leaves_everything(trained: Path, records: Records) -> None:
    assert {file.name for file in trained.iterdir()} == {
        *("config.yaml", "environment.json", "images.json.gz", "metrics.jsonl", "speed.jsonl"),
        *("weights.safetensors", "report.html", "checkpoints", "lock"),
    }
    assert "kind: dvae" in (trained / "config.yaml").read_text()
    report = (trained / "report.html").read_text()
    assert "From images to codes and back" in report
    assert "How often each code is chosen" in report
    assert "http://" not in report.replace("http://www.w3.org", "")  # no network

    log = records(trained)
    assert [r["step"] for r in log if "loss" in r] == [3, 4, 6, 8, 9, 10]
    assert [r["step"] for r in log if "val_psnr" in r] == [5, 10]
    by_step = {r["step"]: r for r in log if "loss" in r}
    assert by_step[3]["temperature"] == pytest.approx(0.5 + 0.25 * (1 + math.cos(0.4 * math.pi)))
    assert by_step[8]["temperature"] == 0.5
    assert by_step[3]["kl_weight"] == 1e-3  # from step 3 on
    assert by_step[3]["choices"] == 3 * 8 * 24  # steps, images, places
    assert all(0 < r["usage"] <= 1 and 0 <= r["kl"] <= math.log(11) for r in by_step.values())
    last = log[-1]
    assert last["val_psnr"] == pytest.approx(-10 * math.log10(last["val_mse"]), abs=1.5)
    assert -1 <= last["val_ssim"] <= 1
    assert last["val_choices"] == 13 * 24


def test_the_report_is_there_before_the_end(
    tmp_path: Path, config: Callable[..., Config], interrupt_at: Interrupt
) -> None:
    interrupt_at(train_dvae, config(tmp_path / "run"), 7)
    assert "From images to codes" in (tmp_path / "run/report.html").read_text()  # of epoch 1
    assert not (tmp_path / "run/weights.safetensors").exists()


def test_the_run_opens_as_a_tokenizer(trained: Path) -> None:
    model = beit.load(trained)
    assert isinstance(model, DiscreteVAE)
    assert not model.training
    tokenizer = beit.load_tokenizer(trained)
    images = torch.randint(256, (2, 3, 16, 24), dtype=torch.uint8)
    codes = tokenizer.encode(images)
    assert (codes.shape, codes.dtype, tokenizer.vocab_size) == ((2, 24), torch.int64, 11)
    assert torch.equal(codes, model.encode(images))
    painted = model.decode_images(codes)
    assert painted.shape == images.shape
    assert 0 <= painted.min() <= painted.max() <= 1


def test_the_first_step_by_hand(
    tmp_path: Path, config: Callable[..., Config], records: Records
) -> None:
    """The logged loss is that of the first eight images, of noise drawn for each by its place."""
    for kl_per in ("place", "step"):
        settings = config(
            tmp_path / kl_per,
            kl_per=kl_per,
            kl_weight=AnnealConfig(0.25, 0.25, share=0.0),
            loss="smooth_l1",
            straight_through=True,
        )
        run = replace(settings.run, log_every=1, stop_after=1)
        train_dvae.run(replace(settings, run=run))
        torch.manual_seed(0)
        vae = DiscreteVAE(settings.model)
        source = open_source(settings.data.train)
        views = TrainViews(settings.view, settings.model.image_size, settings.model.image_size)
        settings_of_step = {"batch_size": 8, "seed": 0, "start_step": 0, "num_steps": 1}
        (batch,) = TrainBatches(source, views, **settings_of_step)
        noise = torch.stack(
            [
                gumbel_noise((11, 4, 6), step_generator(0, 1, f"Gumbel noise {place}"))
                for place in range(8)
            ]
        )
        with torch.no_grad():
            output = vae(batch.images, noise=noise, temperature=1.0, hard=True)
        kl = output.kl * 0.25 / (8 * 24 if kl_per == "place" else 1)
        logged = records(tmp_path / kl_per)[0]
        expected = float(reconstruction_loss(output, smooth=True) + kl)
        assert logged["loss"] == pytest.approx(expected, rel=1e-6)
        assert logged["kl"] == pytest.approx(float(output.kl) / (8 * 24), rel=1e-5)


def test_the_divergence_a_step_is_of_all_its_images(config: Callable[..., Config]) -> None:
    """Half the images of a step, each half's loss counting half, give the whole step's sum."""
    vae = DiscreteVAE(config(Path("unused")).model)
    images = torch.rand(8, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    noise = gumbel_noise((8, 11, 4, 6), torch.Generator().manual_seed(1))
    settings = {"kl_weight": 0.1, "kl_places": 8 * 24, "smooth": False}
    whole, _ = total_loss(vae(images, noise=noise), **settings)
    halves = [
        total_loss(vae(images[part], noise=noise[part]), **settings)[0]
        for part in (slice(0, 4), slice(4, 8))
    ]
    torch.testing.assert_close(sum(halves) / 2, whole)


def test_same_seed_same_bits(
    tmp_path: Path, trained: Path, config: Callable[..., Config], same_bits: Check
) -> None:
    train_dvae.run(config(tmp_path / "again"))
    same_bits(trained, tmp_path / "again")


# The first checkpoint is that of step 4: at 2 there is none, nor a log line; at 3 there is one.
@pytest.mark.parametrize("steps", [(2,), (3,), (5,), (10,), (4, 7)])
def test_a_resumed_run_is_the_uninterrupted_one(
    steps: tuple[int, ...],
    tmp_path: Path,
    trained: Path,
    config: Callable[..., Config],
    interrupt_at: Interrupt,
    same_bits: Check,
) -> None:
    settings = config(tmp_path / "run")
    for number, step in enumerate(steps):
        interrupt_at(train_dvae, settings, step, resume=number > 0)
    resume(train_dvae, tmp_path / "run")
    same_bits(trained, tmp_path / "run")


def test_a_finished_run_may_be_resumed(
    tmp_path: Path, trained: Path, config: Callable[..., Config], same_bits: Check
) -> None:
    result = train_dvae.run(config(tmp_path / "run"))
    (tmp_path / "run" / "weights.safetensors").unlink()  # killed before it was written
    assert resume(train_dvae, tmp_path / "run") == result
    same_bits(trained, tmp_path / "run")


def test_micro_steps_change_memory_not_results(
    tmp_path: Path,
    trained: Path,
    config: Callable[..., Config],
    optim: Callable[..., Any],
    records: Records,
    same_to_rounding: Check,
) -> None:
    train_dvae.run(config(tmp_path / "two", optim=optim(accumulate=2)))
    # Sums of float32 in another order, over ten steps of Adam.
    one, two = (
        [record for record in records(run) if "warning" not in record]
        for run in (trained, tmp_path / "two")
    )
    same_to_rounding(one, two, 2e-5)


def test_without_a_validation_set(tmp_path: Path, config: Callable[..., Config]) -> None:
    settings = config(tmp_path / "run")
    settings = replace(settings, data=replace(settings.data, validation=""))
    run = replace(settings.run, stop_after=1)
    result = train_dvae.run(replace(settings, run=run))
    assert result.metrics == {}
    assert "on the validation set" not in (tmp_path / "run/report.html").read_text()


def test_the_frechet_distance_is_of_the_end_and_of_some_images(
    tmp_path: Path, config: Callable[..., Config], records: Records, monkeypatch: Any
) -> None:
    sizes: list[int] = []

    class Teacher(torch.nn.Module):
        width, grid = 3, (1, 1)

        def features(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
            sizes.append(len(images))
            return images.mean((2, 3))[:, None]  # (B, 1, 3)

    monkeypatch.setattr(train_dvae, "load_teacher", lambda *_, **__: Teacher())
    monkeypatch.setattr(train_dvae, "find_spec", lambda name: None)
    settings = config(tmp_path / "without", frechet_images=10)
    settings = replace(settings, run=replace(settings.run, stop_after=5))
    assert "val_frechet_lite0" not in train_dvae.run(settings).metrics
    monkeypatch.setattr(train_dvae, "find_spec", lambda name: name)
    run = replace(settings.run, output=str(tmp_path / "with"), stop_after=10)
    metrics = train_dvae.run(replace(settings, run=run)).metrics
    assert metrics["val_frechet_lite0"] > 0
    assert sizes == [8, 8, 2, 2]  # the first ten of 13 images and their reconstructions, once
    assert [r["step"] for r in records(tmp_path / "with") if "val_frechet_lite0" in r] == [10]
    run = replace(run, output=str(tmp_path / "single"), stop_after=1)
    data = replace(settings.data, validation="shapes://1?size=24")
    metrics = train_dvae.run(replace(settings, run=run, data=data)).metrics
    assert "val_frechet_lite0" not in metrics  # it needs two images
    log = (tmp_path / "single" / "metrics.jsonl").read_text()  # the image is trained on
    assert log.count("1 of the 1 images of --validation shapes://1?size=24 are in") == 1


# ── annealing ───────────────────────────────────────────────────────────────────────────────────


def test_annealing_by_hand() -> None:
    exponential = AnnealConfig(1.0, 1 / 16, share=0.4, shape="exponential")
    assert [exponential.at(step, 10) for step in (1, 2, 3, 5, 6, 10)] == pytest.approx(
        [1, 1 / 2, 1 / 4, 1 / 16, 1 / 16, 1 / 16]
    )
    cosine = AnnealConfig(0.0, 6.0, share=0.4)
    assert [cosine.at(step, 10) for step in (1, 3, 5, 10)] == pytest.approx([0, 3, 6, 6])
    assert cosine.at(2, 10) == pytest.approx(3 - 3 * math.cos(math.pi / 4))
    assert AnnealConfig(1.0, 0.5, share=0.0).at(1, 10) == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share": 1.5}, r"share is 1\.5; expected a share of the run in \[0, 1\]"),
        ({"end": -1.0}, r"start and end are 1\.0 and -1\.0; expected 0 or more"),
        ({"end": math.nan}, "expected 0 or more, finite"),
        ({"end": 0.0, "shape": "exponential"}, r"exponential from 1\.0 to 0\.0 is undefined"),
    ],
)
def test_impossible_annealing_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(AnnealConfig(1.0, 0.5, share=0.5), **change)


# ── what goes wrong ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"validate_every": 0}, "validate_every is 0; expected 1 epoch or more"),
        ({"temperature": AnnealConfig(1.0, 0.0, 0.5)}, r"temperature goes from 1\.0 to 0\.0"),
        ({"frechet_images": 1}, "frechet_images is 1; expected 2 or more, or 0"),
    ],
)
def test_settings_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**change)


def test_losses_that_are_not_finite_stop_the_run(
    tmp_path: Path, config: Callable[..., Config], monkeypatch: Any
) -> None:
    calls = iter(range(1, 100))

    def distance(output: Any, smooth: bool) -> Tensor:
        return output.decoded.mean() * (float("nan") if next(calls) >= 5 else 1.0)

    settings = config(tmp_path / "run")
    monkeypatch.setattr(dvae_loop, "reconstruction_loss", distance)
    with pytest.raises(ValueError, match=r"loss is nan at step 7, .*rate.*step-000000004\.pt"):
        train_dvae.run(replace(settings, data=replace(settings.data, validation="")))
    assert not (tmp_path / "run" / "weights.safetensors").exists()


def test_a_collapse_is_called_one(
    tmp_path: Path, config: Callable[..., Config], records: Records, capsys: Any
) -> None:
    settings = config(tmp_path / "run", kl_weight=AnnealConfig(0.0, 0.0, 0.0))
    model = replace(settings.model, num_codes=300)
    run = replace(settings.run, stop_after=3)
    train_dvae.run(replace(settings, model=model, run=run))
    (warned,) = [record for record in records(tmp_path / "run") if "warning" in record]
    assert "the codes are collapsing: perplexity" in warned["warning"]
    assert "of 300; raise the weight of the divergence (--kl_weight.st" in capsys.readouterr().err


def test_the_report_of_a_finished_run_is_drawn_again(trained: Path) -> None:
    before = (trained / "report.html").read_text()
    (trained / "report.html").unlink()
    redraw(train_dvae, trained)
    assert (trained / "report.html").read_text() == before


def test_a_run_of_the_other_kind_is_not_resumed(trained_tokenizer: Path) -> None:
    with pytest.raises(
        ValueError, match=r"config\.yaml has unknown fields: freeze; teacher; codebook"
    ):
        resume(train_dvae, trained_tokenizer)


def test_gradient_checkpointing_of_convolutions_is_refused(
    tmp_path: Path, config: Callable[..., Config]
) -> None:
    device = DeviceConfig(accelerator="cpu", gradient_checkpointing=True)
    with pytest.raises(ValueError, match=r"this model has none; leave it out"):
        train_dvae.run(config(tmp_path / "run", device=device))
    assert not (tmp_path / "run").exists()


def test_an_existing_directory_is_refused(trained: Path, config: Callable[..., Config]) -> None:
    before = (trained / "metrics.jsonl").read_bytes()
    with pytest.raises(FileExistsError, match=r"exists and is not overwritten.*--resume"):
        train_dvae.run(config(trained))
    assert (trained / "metrics.jsonl").read_bytes() == before


def test_unreadable_images_are_told_and_counted(
    tmp_path: Path, config: Callable[..., Config], records: Records, capsys: Any
) -> None:
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(20):
        Image.new("RGB", (24, 24), (number * 9, 40, 99)).save(folder / f"{number:02}.png")
    (folder / "07.png").write_bytes(b"nothing of the kind")
    settings = config(tmp_path / "run")
    data = DataConfig(train=str(folder), num_workers=0, max_unreadable=0.1)
    train_dvae.run(replace(settings, data=data))
    assert max(r.get("unreadable", 0) for r in records(tmp_path / "run")) == 1
    assert "07.png" in capsys.readouterr().err
    strict = replace(settings.run, output=str(tmp_path / "strict"))
    with pytest.raises(ValueError, match=r"1 of 20 images cannot be read"):
        train_dvae.run(replace(settings, run=strict, data=replace(data, max_unreadable=0.0)))


def test_it_starts_from_another_one_whole_or_not_at_all(
    tmp_path: Path, trained: Path, trained_tokenizer: Path, config: Any, capsys: Any
) -> None:
    first = config(tmp_path / "run", init=str(trained))
    run = train_dvae.run(replace(first, run=replace(first.run, stop_after=1))).directory
    assert "taken: encoder, codebook of 11 codes, decoder" in capsys.readouterr().err
    old, new = (beit.load(each).state_dict() for each in (trained, run))
    moved = max((new[name] - old[name]).abs().max() for name in old)  # by a step at most
    assert 0 <= moved <= 1.1e-3
    model = replace(first.model, num_codes=7)
    with pytest.raises(ValueError, match=r"to start from it give --model\.num_codes 11"):
        train_dvae.run(config(tmp_path / "other", init=str(trained), model=model))
    with pytest.raises(ValueError, match="holds a VQKD; expected a discrete VAE"):
        train_dvae.run(config(tmp_path / "other", init=str(trained_tokenizer)))
