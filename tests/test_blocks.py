"""The Python of README.md and the guides runs as it stands, one page after the other's beginning.

A page's blocks run in order in a folder with small images, runs and files under the names that the
pages use. A block after `<!-- not run: REASON -->` does not run.
"""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import beit
from beit.codebook.contents import Code, Patch, WholeImage
from beit.codebook.crops import Crop
from beit.data.shapes import ShapesSource
from beit.draw.thumbnails import thumbnail
from beit.fetching.cifar import LabelledImages, write_parquet
from beit.nn.dvae import DiscreteVAE, DiscreteVAEConfig
from beit.nn.heads import ImageClassifier, ImageClassifierConfig
from beit.nn.vit import VisionTransformer, ViTConfig
from beit.weights.formats.published import to_published

ROOT = Path(__file__).parents[1]
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *GUIDES]
BLOCK = re.compile(r"(?:^<!-- not run: ([^>]+) -->\n+)?^```python\n(.*?)^```$", re.M | re.S)
OF_GUIDES = ("extending", "segmentation-masks")  # with files and commands: tests/test_guides.py
WITH_BLOCKS = [
    page for page in PAGES if BLOCK.search(page.read_text("utf-8")) and page.stem not in OF_GUIDES
]

# What stands in for files that are not here.
STAND_INS = {
    "timm:vit_base_patch16_clip_224.openai@CLIP.safetensors": "efficientnet-lite0",
    "published:vqkd_encoder_base_decoder_3x768x12_clip": "runs/tokenizer",
    "hf://timm/beitv2_large_patch16_224.in1k_ft_in22k": "beitv2_base_patch16_224_pt1k_ft1k.pth",
    "runs/cifar10-dvae": "dvae.safetensors",
    "runs/collapsed": "runs/tokenizer",
    "published:beitv2_base_patch16_224_pt1k_ft21kto1k": "beitv2_base_patch16_224_pt1k_ft1k.pth",
    'published:beitv2_base_patch16_224_pt1k"': 'beitv2_base_patch16_224_pt1k.pth"',
}
MADE = {"README": "runs/tokenizer", "python": "runs/pretrain"}  # by the page itself
# Trainings of the pages, made small.
SMALL = {
    "optim.batch_size": 16,
    "optim.epochs": 2,
    "optim.warmup_epochs": 1,
    "data.num_workers": 0,
    "device.accelerator": "cpu",
}


def test_what_does_not_run_says_why():
    reasons = [reason for page in WITH_BLOCKS for reason, _ in BLOCK.findall(page.read_text())]
    assert sum(map(bool, reasons)) <= 5
    for page in PAGES:
        assert page.read_text().count("<!-- not run:") == sum(
            bool(reason) for reason, _ in BLOCK.findall(page.read_text())
        ), f"{page.name}: a mark must stand before a block"


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A folder with everything that the pages name."""
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patched, torch.random.fork_rng():
        patched.chdir(folder)
        torch.manual_seed(0)
        data = Path("data/cifar10")
        data.mkdir(parents=True)
        for name, count in (("train", 80), ("test", 16)):
            source = ShapesSource(count, (32, 32), seed=count)
            images = [source.image(i).permute(1, 2, 0).numpy() for i in range(count)]
            labelled = LabelledImages(np.stack(images), np.arange(count, dtype=np.uint8) % 2)
            write_parquet(data / f"{name}.parquet", labelled, ["cat", "dog"])
        for kind in ("cat", "dog"):
            (Path("photos") / kind).mkdir(parents=True)
            for i in range(16):
                Image.fromarray(images[i]).resize((64, 48)).save(f"photos/{kind}/{i}.jpg")
            shutil.copy(f"photos/{kind}/0.jpg", f"{kind}.jpg")
        shutil.copy("cat.jpg", "some.jpg")
        Path("cells").mkdir()
        wells = ("file,phenotype,plate", "0.tif,round,P1", "1.tif,long,P3")
        Path("cells/plates.csv").write_text("\n".join(wells))
        small = SMALL | {"quiet": True, "preset": "cifar10-cpu"}
        tokenizer = beit.train_tokenizer(
            output="runs/tokenizer",
            **small,
            **{"codebook.start_after": 0, "codebook.revive_every": 0},
        )
        beit.pretrain(tokenizer=tokenizer.path, output="runs/pretrain", **small)
        small["preset"] = "cifar10-ft-cpu"
        beit.finetune(model="runs/pretrain", output="runs/classifier", **small)
        test = "data/cifar10/test.parquet"
        beit.predict(model="runs/classifier", data=test, output="classes.csv", quiet=True)
        beit.tokenize(model="runs/tokenizer", data="photos", output="codes.parquet", quiet=True)
        beit.embed(model="runs/pretrain", data="photos", output="features.npz", quiet=True)
        teacher = "teacher:efficientnet-lite0"
        beit.embed(model=teacher, data="photos", output="features.parquet", quiet=True)
        vae = DiscreteVAE(DiscreteVAEConfig((32, 32), 16, code_width=8, hidden_width=8))
        beit.save(vae, "dvae.safetensors")
        vit = ViTConfig(width=64, depth=2, num_heads=1, relative_bias="per_block")
        classifier = ImageClassifier(ImageClassifierConfig(vit, 1000))
        for name in ("beitv2_base_patch16_224_pt1k_ft1k.pth", "renamed.pth"):
            torch.save({"model": to_published(classifier)}, name)
        torch.save(
            {"model": to_published(VisionTransformer(vit))}, "beitv2_base_patch16_224_pt1k.pth"
        )
        beit.save(classifier, "classifier.safetensors")
        for form, ending in (("onnx", "onnx"), ("torch-export", "pt2")):
            output = f"classifier.{ending}"
            beit.export(model="classifier.safetensors", format=form, output=output, quiet=True)
    return folder


def given(page):
    """Return what the text of a page presumes before its first block."""
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    names = {"beit": beit, "torch": torch, "images": images}
    if page == "python":
        names["loader"] = [(images, torch.tensor([0, 1]))]
    if page == "explorer":
        crop = Crop(np.zeros((48, 48, 3), np.uint8), (0, 0, 1, 1))
        patch = Patch(0, 0, 0.9, "cat.jpg", "cat", crop)
        first = np.zeros((14, 14), np.int64)
        first[0, 0] = 1
        names["codes"] = [
            Code(k, 1, first, nearest=[(1 - k, 0.5)], closest=[patch]) for k in range(2)
        ]
        pixels = thumbnail(np.zeros((28, 28, 3), np.uint8))
        names["images"] = [WholeImage(0, "cat.jpg", pixels, np.zeros(196, np.int64), "cat")]
        names |= {"K": 2, "colours": np.zeros((2, 3), np.uint8)}
    return names


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_BLOCKS, ids=lambda page: page.stem)
def test_blocks_run(page, prepared, tmp_path, monkeypatch, capsys):
    shutil.copytree(prepared, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    if page.stem in MADE:
        shutil.rmtree(MADE[page.stem])
    for name in ("train_tokenizer", "pretrain"):
        monkeypatch.setattr(beit, name, made_small(getattr(beit, name)))
    names = given(page.stem)
    for reason, code in BLOCK.findall(page.read_text("utf-8")):
        for name, stand_in in STAND_INS.items():
            code = code.replace(name, stand_in)
        if not reason:
            exec(compile(code, page.name, "exec"), names)


def made_small(function):
    def small(**options):
        groups = [name for name, value in options.items() if isinstance(value, dict)]
        kept = {n: v for n, v in SMALL.items() if n.partition(".")[0] not in groups}
        return function(**kept | options)

    return small
