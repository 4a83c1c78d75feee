"""Small models of every kind that a weights file can hold; all sizes differ."""

import dataclasses
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from huggingface_hub import constants

from beit.nn.heads import ImageClassifier, ImageClassifierConfig
from beit.nn.mim import MaskedImageModel, MaskedImageModelConfig
from beit.nn.tokenizer import VQKD, VQKDConfig
from beit.nn.vit import VisionTransformer, ViTConfig

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
    """A file on the server: its version goes into the ETag, further headers as they are."""

    content: bytes
    version: str = "1"
    headers: tuple[tuple[str, str], ...] = ()


class Asked(NamedTuple):
    """A request that reached the server."""

    method: str
    path: str
    range: str | None


class Server(ThreadingHTTPServer):
    """Serves files on this machine and can be told to misbehave.

    Attributes:
        files: by path
        cuts: of the next answers, the bytes after which the connection is cut; 0 sends none
        ranges: whether parts are served
        missing: headers of the answer where there is no file
        asked: the requests so far
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, Served] = {}
        self.cuts: list[int] = []
        self.ranges = True
        self.missing: tuple[tuple[str, str], ...] = ()
        self.asked: list[Asked] = []
        self.address = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.answer("HEAD")

    def do_GET(self) -> None:
        self.answer("GET")

    def answer(self, method: str) -> None:
        path, asked = self.path.partition("?")[0], self.headers["Range"]
        self.server.asked.append(Asked(method, path, asked))
        file = self.server.files.get(path)
        if file is None:
            self.send_response(404)
            for name, value in (("Content-Length", "0"), *self.server.missing):
                self.send_header(name, value)
            self.end_headers()
            return
        tag, total = f'"{file.version}"', len(file.content)
        start = 0
        if asked and self.server.ranges and self.headers["If-Range"] in (None, tag):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
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
    """A server of files; proxies of the surroundings are not asked."""
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
    """Stands for the Hugging Face hub: puts a file into its repository owner/name."""
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
