"""Training runs that take about a second, what every run must satisfy, and small models."""

import dataclasses
import hashlib
import json
import math
import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from beit.data.batches import DataConfig
from beit.data.views import ViewConfig
from beit.finetuning import finetune
from beit.nn.dvae import DiscreteVAE, DiscreteVAEConfig
from beit.nn.heads import ImageClassifier, ImageClassifierConfig
from beit.nn.masking import MaskConfig
from beit.nn.mim import MaskedImageModel, MaskedImageModelConfig
from beit.nn.patches import PatchEmbed
from beit.nn.tokenizer import VQKD, VQKDConfig
from beit.nn.vit import VisionTransformer, ViTConfig
from beit.pretraining import pretrain
from beit.run.device import DeviceConfig
from beit.run.directory import RunConfig
from beit.run.journal import Journal
from beit.run.optim import OptimConfig
from beit.run.progress import Progress
from beit.run.resume import resume as resume_run
from beit.segmentation import segment
from beit.segmentation.config import HeadConfig, SegmentDataConfig
from beit.segmentation.optim import StepOptimConfig
from beit.segmentation.views import SegmentViewConfig
from beit.tokenizer import dvae
from beit.tokenizer import vqkd as train_tokenizer
from beit.weights.teachers import TeacherConfig

DATA = DataConfig(
    train="shapes://43?size=24", validation="shapes://13?size=24&seed=1", num_workers=0
)  # 5 steps of 8 an epoch, and 3 images left over
CPU = DeviceConfig(accelerator="cpu")

# A shell ignores Ctrl-C for what it starts in the background, and its children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def vit(**changes: Any) -> ViTConfig:
    """The numbers of a ViT on a grid of 2 x 3."""
    settings = {"image_size": (16, 24), "patch_size": 8, "width": 12, "depth": 2, "num_heads": 3}
    return ViTConfig(**(settings | changes))


def optim(**changes: Any) -> OptimConfig:
    settings = {
        "batch_size": 8,
        "epochs": 2,
        "learning_rate": 1e-3,
        "warmup_epochs": 1,
        "betas": (0.9, 0.98),
        "weight_decay": 0.01,
    }
    return OptimConfig(**(settings | changes))


def tokenizer_config(output: Path, **changes: Any) -> train_tokenizer.Config:
    """A run of ten steps: revivals at 3, 6, 9, checkpoints at 4, 8, 10, log lines at both."""
    settings: dict[str, Any] = {
        "data": DATA,
        "view": ViewConfig(min_scale=0.5, color_jitter=0.0),
        "model": VQKDConfig(
            encoder=vit(absolute_positions=True, relative_bias="none", layer_scale=None),
            decoder_depth=1,
            num_codes=11,
            code_width=5,
            teacher_width=0,
        ),
        "teacher": TeacherConfig("timm:test_efficientnet", image_size=32, pretrained=False),
        "codebook": train_tokenizer.CodebookConfig(revive_every=3),
        "optim": optim(),
        "run": RunConfig(str(output), log_every=3, checkpoint_every=4),
        "device": CPU,
    }
    return train_tokenizer.Config(**(settings | changes))


def pretrain_config(output: Path, tokenizer: Path, **changes: Any) -> pretrain.Config:
    """A run of ten steps: checkpoints at 4, 8, 10, log lines at these and at 3, 6, 9."""
    settings: dict[str, Any] = {
        "data": DATA,
        "tokenizer": str(tokenizer),
        "view": ViewConfig(min_scale=0.5, color_jitter=0.2),
        "model": MaskedImageModelConfig(
            backbone=vit(drop_path=0.1), num_codes=0, early_layers=1, head_layers=1
        ),
        "mask": MaskConfig(count=2, min_block=1),
        "optim": optim(clip=3.0),
        "run": RunConfig(str(output), log_every=3, checkpoint_every=4),
        "device": CPU,
    }
    return pretrain.Config(**(settings | changes))


@pytest.fixture(scope="session", autouse=True)
def _no_bfloat16_unit() -> Iterator[None]:
    """Lets precision auto be float32 in this process, so that tests see the same everywhere."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("beit.run.launch.bfloat16_unit", lambda accelerator: "")
        yield


@pytest.fixture(name="vit", scope="session")
def _vit() -> Callable[..., ViTConfig]:
    return vit


@pytest.fixture(name="optim", scope="session")
def _optim() -> Callable[..., OptimConfig]:
    return optim


@pytest.fixture(name="tokenizer_config", scope="session")
def _tokenizer_config() -> Callable[..., train_tokenizer.Config]:
    return tokenizer_config


@pytest.fixture(name="pretrain_config", scope="session")
def _pretrain_config() -> Callable[..., pretrain.Config]:
    return pretrain_config


@pytest.fixture(scope="session")
def trained_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished tokenizer run."""
    output = tmp_path_factory.mktemp("recipes") / "tokenizer"
    train_tokenizer.run(tokenizer_config(output))
    return output


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """Say in the last line of a run that tests of pages were skipped for want of a browser."""
    yield
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")  # not in xdist's workers
    skipped = reporter.stats.get("skipped", []) if reporter else []
    files = {r.nodeid.partition("::")[0] for r in skipped if "Chromium" in str(r.longrepr)}
    if files:
        untested = ", ".join(sorted(files))
        reporter.write_line(
            f"no Chromium (apt install chromium), so these were skipped: {untested}"
        )


# ── steps that break ─────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def breaks(monkeypatch: pytest.MonkeyPatch) -> Callable[[Collection[int]], None]:
    """Makes the last micro-batch of these steps give NaN for its first image."""

    def install(steps: Collection[int]) -> None:
        journals, begin = list[Journal](), Journal.begin

        def noted(journal: Journal, *arguments: Any, **parts: Any) -> None:
            journals.append(journal)
            begin(journal, *arguments, **parts)

        def breaking(rows_of: Callable[[Any, Tensor], Tensor]) -> Any:
            def broken(module: nn.Module, images: Tensor) -> Tensor:
                rows, journal = rows_of(module, images), journals[-1]
                last = len(journal.indices) == journal.config.optim.accumulate
                if not (module.training and last and journal.step in steps):
                    return rows
                return torch.cat([rows[:1] * math.nan, rows[1:]])

            return broken

        monkeypatch.setattr(Journal, "begin", noted)
        monkeypatch.setattr(PatchEmbed, "forward", breaking(PatchEmbed.forward))
        monkeypatch.setattr(DiscreteVAE, "normalised", breaking(DiscreteVAE.normalised))

    return install


@pytest.fixture
def trainings(
    trained_tokenizer: Path,
    tokenizer_config: Callable[..., Any],
    pretrain_config: Callable[..., Any],
    vit: Callable[..., Any],
    optim: Callable[..., Any],
) -> dict[str, tuple[Any, Callable[..., Any]]]:
    """The modules, and what makes their settings for an output, of runs of eight or ten steps."""
    pretraining = partial(pretrain_config, tokenizer=trained_tokenizer)
    classes = DataConfig("shapes://43?size=24", num_workers=0)
    maps = SegmentDataConfig("shapes://15?size=24", num_workers=0)
    steps = StepOptimConfig(batch_size=4, steps=8, warmup_steps=2)
    device = DeviceConfig(accelerator="cpu")

    def run(output: Path) -> RunConfig:
        return RunConfig(str(output), log_every=3, checkpoint_every=4)

    return {
        "pretrain": (pretrain, pretraining),
        "pretrain by Muon": (
            pretrain,
            partial(pretraining, optim=optim(kind="muon", accumulate=2)),
        ),
        "train-tokenizer": (train_tokenizer, partial(tokenizer_config, optim=optim(accumulate=2))),
        "train-tokenizer --kind dvae": (
            dvae,
            lambda output: dvae.Config(
                data=DATA,
                view=ViewConfig(min_scale=0.5, color_jitter=0.0),
                model=DiscreteVAEConfig(
                    image_size=(16, 24), num_codes=11, code_width=5, num_layers=2, hidden_width=6
                ),
                optim=optim(clip=1.0),
                frechet_images=0,
                run=run(output),
                device=device,
            ),
        ),
        "finetune": (
            finetune,
            lambda output: finetune.Config(
                data=classes,
                backbone=vit(relative_bias="per_block"),
                optim=optim(clip=3.0),
                average=0.8,
                run=run(output),
                device=device,
            ),
        ),
        "segment": (
            segment,
            lambda output: segment.Config(
                data=maps,
                backbone=vit(depth=4, relative_bias="per_block"),
                head=HeadConfig(channels=8, auxiliary_channels=8),
                view=SegmentViewConfig(long_side=96, short_side=24),
                optim=steps,
                run=run(output),
                device=device,
            ),
        ),
    }


# ── checks of every run ───────────────────────────────────────────────────────────────────────────


@pytest.fixture
def records() -> Callable[[Path], list[dict[str, Any]]]:
    """Reads the metrics log of a run."""

    def read(run: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]

    return read


@pytest.fixture
def same_bits() -> Callable[[Path, Path], None]:
    """Asserts that two runs have the same metrics log and the same weights, to the bit."""

    def check(first: Path, second: Path) -> None:
        logs = [(run / "metrics.jsonl").read_bytes() for run in (first, second)]
        assert logs[0] == logs[1]
        weights = [load_file(run / "weights.safetensors") for run in (first, second)]
        assert_same_tensors(*weights)

    return check


@pytest.fixture
def checkpointing(monkeypatch: pytest.MonkeyPatch) -> Iterator[DeviceConfig]:
    """A CPU with gradient checkpointing, which the test must use."""
    used: list[Any] = []

    def counted(function: Any, *arguments: Any, **settings: Any) -> Any:
        used.append(function)
        return checkpoint(function, *arguments, **settings)

    monkeypatch.setattr("beit.nn.block.checkpoint", counted)
    yield DeviceConfig(accelerator="cpu", gradient_checkpointing=True)
    assert used


def assert_same_tensors(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert not [name for name in first if not torch.equal(first[name], second[name])]


class Interrupted(Exception):  # noqa: N818
    """Stands for the end of a process in the middle of a step."""


@pytest.fixture
def interrupt_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a training and interrupts it after a step."""

    def interrupt(recipe: Any, config: Any, step: int, resume: bool = False) -> None:
        update = Progress.update

        def broken(self: Any, at: int, *rest: Any) -> Any:
            if at == step:
                raise Interrupted
            return update(self, at, *rest)

        with monkeypatch.context() as patched:
            patched.setattr(Progress, "update", broken)
            with pytest.raises(Interrupted):
                if resume:
                    resume_run(recipe, config.run.output)
                else:
                    recipe.run(config)

    return interrupt


@pytest.fixture
def same_to_rounding() -> Callable[[Any, Any, float], None]:
    """Asserts that two metrics logs are equal up to a relative difference."""

    def check(first: list[dict[str, Any]], second: list[dict[str, Any]], rel: float) -> None:
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert one.keys() == other.keys()
            for name in one:
                expected = pytest.approx(one[name], rel=rel, abs=rel)
                assert other[name] == expected, f"{name} at step {one['step']}"

    return check


# ── small models of every kind that a weights file can hold; all sizes differ ───────────────────

TOKENIZER = VQKDConfig(
    encoder=ViTConfig(
        image_size=(12, 20),
        patch_size=4,
        width=24,
        depth=3,
        num_heads=2,
        absolute_positions=True,
        relative_bias="none",
        layer_scale=None,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        init_bound=2.0,
    ),
    decoder_depth=1,
    num_codes=11,
    code_width=6,
    teacher_width=7,
)
TRUNK = ViTConfig(image_size=(16, 16), patch_size=4, width=24, depth=3, num_heads=2)


def scrambled(model: torch.nn.Module) -> torch.nn.Module:
    """Give every tensor values of its own, so that no two could be mistaken for each other."""
    generator = torch.Generator().manual_seed(1)
    for tensor in model.state_dict().values():
        if tensor.dtype == torch.bool:
            tensor.fill_(True)
        else:
            tensor.copy_(torch.rand(tensor.shape, generator=generator))
    return model.eval()


@pytest.fixture
def tokenizer() -> VQKD:
    return scrambled(VQKD(TOKENIZER))


@pytest.fixture
def pretrained() -> MaskedImageModel:
    config = MaskedImageModelConfig(
        backbone=TRUNK, num_codes=11, early_layers=2, head_layers=1, shared_head=False
    )
    return scrambled(MaskedImageModel(config))


@pytest.fixture
def classifier() -> ImageClassifier:
    per_block = dataclasses.replace(TRUNK, relative_bias="per_block")
    return scrambled(ImageClassifier(ImageClassifierConfig(per_block, num_classes=5)))


@pytest.fixture
def backbone() -> VisionTransformer:
    return scrambled(VisionTransformer(TRUNK))


# ── a server of files ───────────────────────────────────────────────────────────────────────────


class Served(NamedTuple):
    """A file on the server: its version becomes the ETag; `headers` are added unchanged."""

    content: bytes
    version: str = "1"
    headers: tuple[tuple[str, str], ...] = ()


class Request(NamedTuple):
    """A request that the server received."""

    method: str
    path: str
    range: str | None


class Server(ThreadingHTTPServer):
    """Serves files on this machine; can break connections.

    Attributes:
        files: by path
        cuts: numbers of bytes after which the next connections are closed
        ranges: whether range requests are supported
        missing: headers of 404 responses
        requests: the requests so far
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, Served] = {}
        self.cuts: list[int] = []
        self.ranges = True
        self.missing: tuple[tuple[str, str], ...] = ()
        self.requests: list[Request] = []
        self.address = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.answer("HEAD")

    def do_GET(self) -> None:
        self.answer("GET")

    def answer(self, method: str) -> None:
        path, requested = self.path.partition("?")[0], self.headers["Range"]
        self.server.requests.append(Request(method, path, requested))
        file = self.server.files.get(path)
        if file is None:
            self.send_response(404)
            for name, value in (("Content-Length", "0"), *self.server.missing):
                self.send_header(name, value)
            self.end_headers()
            return
        tag, total = f'"{file.version}"', len(file.content)
        start = 0
        if requested and self.server.ranges and self.headers["If-Range"] in (None, tag):
            start = int(requested.removeprefix("bytes=").removesuffix("-"))
        self.send_response(416 if start >= total else 206 if start else 200)
        if start >= total:
            self.send_header("Content-Range", f"bytes */{total}")
        elif start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        for name, value in (("ETag", tag), *file.headers):
            self.send_header(name, value)
        body = file.content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if method == "GET":
            cut = self.server.cuts.pop(0) if self.server.cuts else len(body)
            self.wfile.write(body[:cut])
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server of files; proxies in the environment are not used."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    with Server() as serving:
        thread = threading.Thread(target=serving.serve_forever, args=(0.01,))
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def make_served() -> type[Served]:
    return Served


@pytest.fixture
def hugging_face(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., None]:
    """A fake Hugging Face hub: returns a function that adds a file to the repository owner/name."""
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", "", 1)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.address + template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    server.missing = (("X-Error-Code", "EntryNotFound"),)

    def put(name: str, content: bytes, revision: str = "main") -> None:
        commit = (("X-Repo-Commit", hashlib.sha1(revision.encode()).hexdigest()),)
        file = Served(content, hashlib.sha256(content).hexdigest(), commit)
        server.files[f"/owner/name/resolve/{revision}/{name}"] = file

    return put


@pytest.fixture
def interrupt_in_validation(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a training until the last of its validations begins, and breaks it off there."""

    def interrupt(recipe: Any, loop: Any, config: Any, validations: int) -> None:
        validate, begun = loop.validate, []

        def broken(*arguments: Any) -> Any:
            begun.append(1)
            if len(begun) == validations:
                raise Interrupted
            return validate(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(loop, "validate", broken)
            with pytest.raises(Interrupted):
                recipe.run(config)

    return interrupt
