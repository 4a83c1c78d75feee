import json
import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
from PIL import Image
from torch import Tensor

from beit import cli
from beit.data.batches import DataConfig
from beit.nn.dalle import DalleConfig, DalleTokenizer
from beit.nn.dvae import DiscreteVAE, DiscreteVAEConfig
from beit.nn.masking import MaskConfig
from beit.nn.mim import MaskedImageModel
from beit.pretraining import loop, pretrain
from beit.pretraining.config import CheckConfig
from beit.pretraining.loop import validation_masks
from beit.pretraining.targets import TargetConfig
from beit.run.batches import open_validation
from beit.run.launch import launch
from beit.run.resume import redraw, resume
from beit.weights.file import save_weights
from beit.weights.formats.dalle import to_dalle
from beit.weights.open import load, load_backbone, load_tokenizer

CHECK = CheckConfig(every=1, limit=20)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, trained_tokenizer, pretrain_config):
    """The directory of a finished run with a k-NN check."""
    output = tmp_path_factory.mktemp("pretrain") / "run"
    pretrain.run(pretrain_config(output, trained_tokenizer, check=CHECK))
    return output


def test_a_run_leaves_everything(finished, records):
    names = {file.name for file in finished.iterdir()}
    assert names == {
        *("config.yaml", "environment.json", "images.json.gz", "metrics.jsonl", "speed.jsonl"),
        *("weights.safetensors", "report.html", "checkpoints", "lock"),
    }
    report = (finished / "report.html").read_text()
    assert "What it predicts" in report
    assert "http://" not in report.replace("http://www.w3.org", "")  # no network

    log = records(finished)
    assert [r["step"] for r in log if "loss" in r] == [3, 4, 6, 8, 9, 10]
    assert [r["step"] for r in log if "val_loss" in r] == [5, 10]
    assert [r["step"] for r in log if "knn_cls" in r] == [0, 5, 10]  # first untrained
    assert all(0 <= r[name] <= 1 for r in log for name in r if name.startswith(("knn", "accuracy")))
    sums = [r["patch_loss"] + r["cls_loss"] for r in log if "loss" in r]
    assert sums == pytest.approx([r["loss"] for r in log if "loss" in r])


def test_the_report_is_there_before_the_end(
    tmp_path, trained_tokenizer, pretrain_config, interrupt_at
):
    interrupt_at(pretrain, pretrain_config(tmp_path / "run", trained_tokenizer), 7)
    assert "What it predicts" in (tmp_path / "run/report.html").read_text()  # since epoch 1's end
    assert not (tmp_path / "run/weights.safetensors").exists()


def test_weights_load_by_every_name(finished):
    model = load(finished)
    assert isinstance(model, MaskedImageModel)
    assert not model.training
    assert model.config.num_codes == 11  # taken from the tokenizer
    images = torch.randint(256, (2, 3, 16, 24), dtype=torch.uint8)
    with torch.no_grad():
        features = load_backbone(finished)(images)
    assert features.cls.shape == (2, 12)
    assert features.patches.shape == (2, 6, 12)


def test_same_seed_same_bits(tmp_path, finished, trained_tokenizer, pretrain_config, same_bits):
    pretrain.run(pretrain_config(tmp_path / "again", trained_tokenizer, check=CHECK))
    same_bits(finished, tmp_path / "again")


# The first checkpoint is that of step 4: at 2 there is none, nor a log line; at 3 there is one.
@pytest.mark.parametrize("steps", [(2,), (3,), (5,), (10,), (4, 7)])
def test_a_resumed_run_is_the_uninterrupted_one(
    steps, tmp_path, finished, trained_tokenizer, pretrain_config, interrupt_at, same_bits
):
    config = pretrain_config(tmp_path / "run", trained_tokenizer, check=CHECK)
    for number, step in enumerate(steps):
        interrupt_at(pretrain, config, step, resume=number > 0)
    resume(pretrain, tmp_path / "run")
    same_bits(finished, tmp_path / "run")


def test_a_finished_run_may_be_resumed(
    tmp_path, finished, trained_tokenizer, pretrain_config, same_bits
):
    result = pretrain.run(pretrain_config(tmp_path / "run", trained_tokenizer, check=CHECK))
    (tmp_path / "run" / "weights.safetensors").unlink()  # killed before it was written
    assert resume(pretrain, tmp_path / "run") == result
    same_bits(finished, tmp_path / "run")


def test_a_run_stopped_in_its_last_validation_resumes_there(
    tmp_path, finished, trained_tokenizer, pretrain_config, interrupt_in_validation, same_bits
):
    config = pretrain_config(tmp_path / "run", trained_tokenizer, check=CHECK)
    interrupt_in_validation(pretrain, loop, config, 2)
    assert (tmp_path / "run" / "checkpoints" / "step-000000010.pt").exists()
    resume(pretrain, tmp_path / "run")
    same_bits(finished, tmp_path / "run")


def test_the_report_of_a_finished_run_is_drawn_again(finished):
    before = (finished / "report.html").read_text()
    (finished / "report.html").unlink()
    sections = redraw(pretrain, finished)
    assert [section.title for section in sections] == ["What it predicts", "Pretraining"]
    assert (finished / "report.html").read_text() == before


def test_unreadable_validation_images_have_their_masks_to_themselves(
    tmp_path, trained_tokenizer, pretrain_config, records
):
    """Twenty images of which three are broken give the figures of the seventeen."""
    generator = torch.Generator().manual_seed(0)
    for number in range(20):
        pixels = torch.randint(256, (24, 24, 3), generator=generator, dtype=torch.uint8)
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels.numpy()).save(tmp_path / "images" / f"{number:02}.png")
    data = DataConfig("shapes://16?size=24", str(tmp_path / "images"), max_unreadable=0.15)
    metrics = {}
    for name in ("whole", "holed"):
        config = pretrain_config(tmp_path / name, trained_tokenizer, data=data)
        run = replace(config.run, stop_after=1)
        metrics[name] = pretrain.run(replace(config, run=run)).metrics
        for number in (3, 8, 19):
            (tmp_path / "images" / f"{number:02}.png").write_bytes(b"broken")
    assert "val_images" not in metrics["whole"]
    assert (metrics["holed"]["val_images"], metrics["holed"]["val_unreadable"]) == (17, 3)
    fabric = launch(config.device)
    target, mim = pretrain.build(config, fabric)
    mim.load_state_dict(load(tmp_path / "holed").state_dict())
    grid, step_size = mim.config.backbone.grid, config.optim.batch_size
    drawn = partial(validation_masks, config.mask, step_size, grid, config.run.seed)
    accuracies = []
    for batch in open_validation(config, mim.image_size, fabric):
        masked = drawn(batch.indices)
        for row in range(len(masked)):  # one by one, by the mask of its own index
            own = drawn(batch.indices[row:][:1])
            assert torch.equal(own, masked[row][None])
            with torch.no_grad():
                output = mim(batch.images[row][None], own)
                codes = target.of(batch.images[row][None]).gather(1, own)
            accuracies.append(float((output.logits.argmax(2) == codes).float().mean()))
    assert len(accuracies) == 17
    assert metrics["holed"]["val_accuracy"] == pytest.approx(sum(accuracies) / 17, rel=1e-6)
    few = replace(config, data=replace(data, max_unreadable=0.1))
    run = replace(config.run, output=str(tmp_path / "few"), stop_after=1)
    with pytest.raises(ValueError, match=r"3 of 20 images cannot be read.*max_unreadable"):
        pretrain.run(replace(few, run=run))


def test_micro_steps_change_memory_not_results(
    tmp_path, trained_tokenizer, pretrain_config, vit, optim, records, same_to_rounding
):
    for name, accumulate in (("one", 1), ("two", 2)):
        config = pretrain_config(tmp_path / name, trained_tokenizer)
        model = replace(config.model, backbone=vit())  # without drop path, which is by micro-step
        pretrain.run(replace(config, model=model, optim=optim(clip=3.0, accumulate=accumulate)))
    # Sums of float32 in another order, over ten steps.
    same_to_rounding(records(tmp_path / "one"), records(tmp_path / "two"), 2e-5)


def test_gradient_checkpointing_changes_memory_not_results(
    tmp_path, finished, trained_tokenizer, pretrain_config, checkpointing, same_bits
):
    pretrain.run(
        pretrain_config(tmp_path / "run", trained_tokenizer, check=CHECK, device=checkpointing)
    )
    same_bits(finished, tmp_path / "run")


def test_plain_masked_image_modelling(tmp_path, trained_tokenizer, pretrain_config, records):
    config = pretrain_config(
        tmp_path / "run", trained_tokenizer, mask=MaskConfig(kind="random", count=3)
    )
    pretrain.run(replace(config, model=replace(config.model, head_layers=0)))
    log = records(tmp_path / "run")
    assert [r["cls_loss"] for r in log if "loss" in r] == [0.0] * 6
    assert not [r for r in log if "val_cls_accuracy" in r]


# ── other targets, other masks ──────────────────────────────────────────────────────────────────

FEATURES = TargetConfig(
    "features", "timm:test_efficientnet", loss="smooth-l1", image_size=32, pretrained=False
)


@pytest.fixture(scope="module")
def save_tokenizer(tmp_path_factory):
    """Saves a small image tokenizer of BEiT v1, for images half as large as the backbone's."""
    folder = tmp_path_factory.mktemp("image tokenizers")

    def save(kind):
        torch.manual_seed(0)
        if kind == "dalle":
            config = DalleConfig((16, 16), 7, width=4, blocks_per_group=1, decoder=False)
            model = DalleTokenizer(config)
        else:
            model = DiscreteVAE(DiscreteVAEConfig((16, 16), 7, 5, num_layers=2, hidden_width=6))
        save_weights(folder / f"{kind}.safetensors", model)
        return str(folder / f"{kind}.safetensors")

    return save


@pytest.mark.parametrize(
    ("target", "merit"),
    [
        (TargetConfig("pixels"), "explained"),
        (TargetConfig("pixels", normalised=False, loss="smooth-l1"), "explained"),
        (FEATURES, "cosine"),
    ],
)
def test_numbers_are_predicted(tmp_path, target, merit, pretrain_config, records):
    config = pretrain_config(tmp_path / "run", "", target=target)
    result = pretrain.run(config)
    log = records(tmp_path / "run")
    assert set(result.metrics) == {"val_loss", f"val_{merit}", f"val_cls_{merit}"}
    assert all(merit in record and record[merit] <= 1 for record in log if "loss" in record)
    assert "accuracy" not in log[0] and "spread" not in log[0]
    model = load(tmp_path / "run")
    assert model.config.predicts == target.kind and model.config.num_codes == 0
    assert load_backbone(tmp_path / "run").config == model.config.backbone
    report = (tmp_path / "run" / "report.html").read_text()
    assert {"explained": "Explained share", "cosine": "Cosine"}[merit] in report


def test_what_is_predicted_is_learned(tmp_path, pretrain_config, records, optim):
    config = pretrain_config(tmp_path / "run", "", target=TargetConfig("pixels"))
    longer = optim(epochs=20, learning_rate=5e-3, clip=3.0)
    result = pretrain.run(replace(config, optim=longer, validate_every=20))
    assert result.metrics["val_explained"] > 0.02 and result.metrics["val_cls_explained"] > 0.02


@pytest.mark.parametrize("kind", ["dalle", "dvae"])
def test_tokens_of_beit_v1s_tokenizers(tmp_path, kind, save_tokenizer, pretrain_config, vit):
    config = pretrain_config(tmp_path / "run", save_tokenizer(kind))
    # 2 x 3 codes are 16 x 24 pixels of the one (a patch is 8) and 8 x 12 of the other.
    model = replace(config.model, backbone=vit(image_size=(32, 48), patch_size=16), head_layers=0)
    result = pretrain.run(replace(config, model=model, mask=MaskConfig(count=3, exact=False)))
    near = ("rank", "first5", "wrong_cosine", "random_cosine", "chance", "first5_chance")
    assert set(result.metrics) == {"val_loss", "val_accuracy", *(f"val_{name}" for name in near)}
    assert load(tmp_path / "run").config.num_codes == 7


@pytest.mark.parametrize(
    "target", [TargetConfig(), TargetConfig("pixels"), FEATURES], ids=["tokens", "pixels", "feats"]
)
def test_resumed_runs_of_every_target(
    tmp_path, target, trained_tokenizer, pretrain_config, interrupt_at, same_bits
):
    tokenizer = trained_tokenizer if target.kind == "tokens" else ""
    mask = MaskConfig(ratio=0.5, min_block=1, exact=False)
    for name in ("whole", "cut"):
        config = pretrain_config(tmp_path / name, tokenizer, target=target, mask=mask)
        if name == "whole":
            pretrain.run(config)
        else:
            interrupt_at(pretrain, config, 5)
            resume(pretrain, tmp_path / name)
    same_bits(tmp_path / "whole", tmp_path / "cut")


def test_all_patches_are_predicted(tmp_path, trained_tokenizer, pretrain_config, monkeypatch):
    shapes = []
    forward = MaskedImageModel.forward

    def noted(self, images, masked, patches=None, *codes):
        shapes.append((masked.shape[1], patches.shape[1]) if patches is not None else None)
        return forward(self, images, masked, patches, *codes)

    monkeypatch.setattr(MaskedImageModel, "forward", noted)
    for predict in ("masked", "all"):
        config = pretrain_config(tmp_path / predict, trained_tokenizer, predict=predict)
        pretrain.run(replace(config, run=replace(config.run, stop_after=1)))
    steps = [shape for shape in shapes if shape is not None]
    assert set(steps[: len(steps) // 2]) == {(2, 2)} and set(steps[len(steps) // 2 :]) == {(2, 6)}


@pytest.mark.slow
def test_beit_v1_at_full_size(tmp_path, records):
    """Two steps of the published recipe, on a file of random weights in DALL-E's layout."""
    torch.manual_seed(0)
    config = DalleConfig(decoder=False)
    torch.save(to_dalle(DalleTokenizer(config)), tmp_path / "dalle.pth")
    cut = """
    --data.train shapes://4?size=256 --data.validation= --data.num_workers 0 --check.every 0
    --optim.batch_size 2 --run.stop_after 2 --run.log_every 1
    --device.precision 32-true --device.accelerator cpu --device.devices 1
    """
    options = [*cut.split(), f"--tokenizer={tmp_path / 'dalle.pth'}"]
    options += ["--run.output", str(tmp_path / "run")]
    assert cli.main(["pretrain", "--preset", "beit1-b16-800e", *options]) == 0
    log = records(tmp_path / "run")
    assert [record["step"] for record in log] == [1, 2]
    assert all(8 < record["loss"] < 10 and record["cls_loss"] == 0 for record in log)  # ln 8192
    model = load(tmp_path / "run")
    assert sum(parameter.numel() for parameter in model.parameters()) == 91_965_776
    assert load_backbone(tmp_path / "run").config.grid == (14, 14)
    shutil.rmtree(tmp_path / "run")  # a gigabyte and a half


# ── what goes wrong ─────────────────────────────────────────────────────────────────────────────


def test_a_loss_that_is_not_finite_stops_the_run(
    tmp_path, trained_tokenizer, pretrain_config, monkeypatch
):
    calls = iter(range(1, 100))
    predict = loop.predict

    def broken(*arguments: object) -> dict[str, Tensor]:
        measured = predict(*arguments)  # type: ignore[arg-type]
        factor = float("inf") if next(calls) >= 5 else 1.0
        return measured | {"patch_loss": factor * measured["patch_loss"]}

    config = pretrain_config(tmp_path / "run", trained_tokenizer)
    monkeypatch.setattr(loop, "predict", broken)
    with pytest.raises(ValueError, match=r"loss is (nan|inf) at step 7, .*step-000000004\.pt"):
        pretrain.run(replace(config, data=replace(config.data, validation="")))
    assert not (tmp_path / "run" / "weights.safetensors").exists()


def test_no_tokenizer_is_refused(tmp_path, pretrain_config):
    with pytest.raises(ValueError, match=r"no tokenizer given; .*beit train-tokenizer makes"):
        pretrain.run(replace(pretrain_config(tmp_path / "run", tmp_path), tokenizer=""))
    assert not (tmp_path / "run").exists()


def test_another_grid_is_refused(tmp_path, trained_tokenizer, pretrain_config, vit):
    config = pretrain_config(tmp_path / "run", trained_tokenizer)
    model = replace(config.model, backbone=vit(image_size=(24, 24)))
    with pytest.raises(
        ValueError, match=r"the tokenizer's grid is \(2, 3\), the backbone's \(3, 3\)"
    ):
        pretrain.run(replace(config, model=model))
    assert not (tmp_path / "run").exists()


def test_another_size_of_the_same_grid_is_not(tmp_path, trained_tokenizer, pretrain_config, vit):
    config = pretrain_config(tmp_path / "run", trained_tokenizer)
    model = replace(config.model, backbone=vit(image_size=(8, 12), patch_size=4))
    config = replace(config, model=model)
    metrics = pretrain.run(config).metrics
    # Validation has the codes of the images at the tokenizer's own size, as training has.
    size, drawn = load_tokenizer(trained_tokenizer).image_size, []
    for batch in open_validation(config, size, launch(config.device)):
        codes = load_tokenizer(trained_tokenizer).encode(batch.images)
        masked = validation_masks(
            *(config.mask, config.optim.batch_size, (2, 3), config.run.seed, batch.indices)
        )
        drawn.append(codes.gather(1, masked))
    counts = torch.cat(drawn).flatten().bincount()
    assert metrics["val_chance"] == pytest.approx(float(counts.max() / counts.sum()))


def test_another_number_of_codes_is_refused(tmp_path, trained_tokenizer, pretrain_config):
    config = pretrain_config(tmp_path / "run", trained_tokenizer)
    with pytest.raises(ValueError, match=r"num_codes is 64, but the tokenizer has 11 codes"):
        pretrain.run(replace(config, model=replace(config.model, num_codes=64)))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("count", [0, 7])
def test_more_masked_patches_than_there_are_are_refused(
    count, tmp_path, trained_tokenizer, pretrain_config
):
    with pytest.raises(ValueError, match=f"mask.count is {count}, but an image has 6 patches"):
        pretrain_config(tmp_path / "run", trained_tokenizer, mask=MaskConfig(count=count))


def test_an_existing_directory_is_refused_before_anything_is_loaded(
    finished, trained_tokenizer, pretrain_config, monkeypatch
):
    monkeypatch.setattr(pretrain, "load_target", None)
    before = (finished / "metrics.jsonl").read_bytes()
    with pytest.raises(FileExistsError, match=r"exists and is not overwritten.*--resume"):
        pretrain.run(pretrain_config(finished, trained_tokenizer))
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_a_neighbour_check_without_labels_is_refused(tmp_path, trained_tokenizer, pretrain_config):
    (tmp_path / "flat").mkdir()
    for place in range(8):
        Image.new("RGB", (24, 24), (place, 0, 0)).save(tmp_path / "flat" / f"{place}.png")
    config = pretrain_config(tmp_path / "run", trained_tokenizer, check=CHECK)
    data = replace(config.data, train=str(tmp_path / "flat"))
    with pytest.raises(ValueError, match=r"--data .*flat: images without a label: .*k-NN"):
        pretrain.run(replace(config, data=data))
    data = replace(config.data, validation="")
    with pytest.raises(ValueError, match=r"needs labelled images; give --check\.test"):
        pretrain.run(replace(config, data=data))
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_that_was_trained_again_is_not_resumed_with(
    tmp_path, trained_tokenizer, pretrain_config
):
    shutil.copy(trained_tokenizer / "weights.safetensors", tmp_path / "tok.safetensors")
    config = pretrain_config(tmp_path / "run", tmp_path / "tok.safetensors")
    pretrain.run(replace(config, run=replace(config.run, stop_after=1)))
    tokenizer = load(tmp_path / "tok.safetensors")
    tokenizer.quantizer.codebook.copy_(tokenizer.quantizer.codebook.flip(0))
    save_weights(tmp_path / "tok.safetensors", tokenizer)
    with pytest.raises(ValueError, match=r"tok\.safetensors has other weights than when .*run st"):
        resume(pretrain, tmp_path / "run")
    about = tmp_path / "run" / "environment.json"
    kept = json.loads(about.read_text())
    del kept["tokenizer"]  # as older versions wrote it
    about.write_text(json.dumps(kept))
    resume(pretrain, tmp_path / "run")


def test_validation_images_that_are_trained_on_are_counted(
    tmp_path, trained_tokenizer, pretrain_config
):
    config = pretrain_config(tmp_path / "run", trained_tokenizer)
    data = replace(config.data, validation="shapes://9?size=24")
    pretrain.run(replace(config, data=data, run=replace(config.run, stop_after=1)))
    log = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert log.count("9 of the 9 images of --validation shapes://9?size=24 are in") == 1


def test_a_neighbour_check_matches_classes_by_name(
    tmp_path, trained_tokenizer, pretrain_config, caplog
):
    for folder, colours in (
        ("train", "red lime blue"),
        ("test", "blue red"),
        ("other", "red pink"),
    ):
        for colour in colours.split():
            (tmp_path / folder / colour).mkdir(parents=True)
            Image.new("RGB", (24, 24), colour).save(tmp_path / folder / colour / "0.png")
    check = CheckConfig(every=1, train=str(tmp_path / "train"), test=str(tmp_path / "test"))
    config = pretrain_config(tmp_path / "run", trained_tokenizer, check=check)
    fabric = launch(config.device)
    train, test = pretrain.check_batches(config, fabric)
    pairs = [batch for batches in (train, test) for batch in batches]
    colours = {int(n): image for n, image in zip(pairs[0].labels, pairs[0].images, strict=True)}
    for label, image in zip(pairs[1].labels, pairs[1].images, strict=True):
        assert torch.equal(image, colours[int(label)])
    assert "little about new images" not in caplog.text
    same = replace(check, test=f"{tmp_path}/train/")
    pretrain.check_batches(replace(config, check=same), fabric)
    assert "3 of the 3 images of --check.test" in caplog.text
    check = replace(check, test=str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"1 class .* lacks: pink; .* --check\.every 0"):
        pretrain.check_batches(replace(config, check=check), fabric)


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path, finished, pretrain_config):
    with pytest.raises(ValueError, match=r"holds a MaskedImageModel, .* expected a tokenizer"):
        pretrain.run(pretrain_config(tmp_path / "run", finished))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": TargetConfig("pixels")}, "a tokenizer is given, .* target.kind is pixels"),
        ({"target": TargetConfig(source="other")}, "two tokenizers are given: .* other; leave"),
    ],
)
def test_a_tokenizer_too_many_is_refused(changes, message, tmp_path, pretrain_config):
    with pytest.raises(ValueError, match=message):
        pretrain_config(tmp_path / "run", "runs/tok", **changes)
