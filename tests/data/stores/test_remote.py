import io
import os
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from beit.data.source import UnreadableImage, file_of
from beit.data.sources import open_source
from beit.data.stores import http, remote
from beit.data.stores.remote import RemoteBlob

CONTENT = np.random.default_rng(0).integers(0, 256, 700_000, np.uint8).tobytes()
BLOCK = remote._BLOCK


class Server(ThreadingHTTPServer):
    """Serves one content at any path; each request takes the next of its `faults`, if any is left.

    `forever` is the fault of all requests for a part of more than one byte.
    """

    daemon_threads = True

    def __init__(self, content):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.faults, self.forever, self.requests = content, [], None, []
        self.tag, self.url = '"1"', f"http://127.0.0.1:{self.server_port}/x.tar"

    def handle_error(self, *_):
        pass  # a connection that was dropped


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, content = self.server, self.server.content
        server.requests.append(self.headers["Range"])
        start, end = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        looks = end == start
        fault = server.forever if not looks and server.forever else None
        if not looks and server.faults:
            fault = server.faults.pop(0)
        body, total, tag, code = content[start : end + 1], len(content), server.tag, 206
        said, length = f"bytes {start}-{end}/{total}", len(body)
        if fault == "drop":
            self.connection.close()
            return
        if fault == "stall":
            time.sleep(0.5)
        if fault == "cut":
            body = body[: len(body) // 2]
        if fault == "short":  # less than was asked for, and said so
            body = body[: len(body) // 2]
            length = len(body)
        if fault == "long":
            length += 1000
        if fault == "other place":
            body, said = content[1 : 1 + len(body)], f"bytes 1-{len(body)}/{total}"
        if fault == "unsaid":
            said = None
        if fault == "busy":
            code, body, length = 503, b"", 0
        if fault == "404":
            code, body, length = 404, b"", 0
        if fault == "whole":
            code, body, length, said = 200, content, total, None
        if fault == "changed":
            body, tag = bytes(len(body)), '"2"'
        self.send_response(code)
        for name, value in (("Content-Range", said), ("Content-Length", length), ("ETag", tag)):
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        pieces = range(0, len(body), 1000) if fault == "trickle" else [0]
        for piece in pieces:
            self.wfile.write(body[piece : piece + 1000] if fault == "trickle" else body)
            if fault == "trickle":
                time.sleep(0.02)
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def serve(monkeypatch, tmp_path):
    """Starts a server of a content; blocks are kept in a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(remote, "_PAUSE", 0.001)
    remote._kept.cache_clear()
    servers = []

    def started(content=CONTENT):
        servers.append(Server(content))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return servers[-1]

    yield started
    for server in servers:
        server.shutdown()
        server.server_close()
    remote._kept.cache_clear()


def parts(blob):
    return [blob.read(*span) for span in ((0, 10), (BLOCK - 5, 10), (690_000, 10_000))]


PARTS = [CONTENT[:10], CONTENT[BLOCK - 5 : BLOCK + 5], CONTENT[690_000:]]
PASSING = ["drop", "stall", "cut", "short", "long", "other place", "unsaid", "busy"]


@pytest.mark.parametrize("fault", [*PASSING, "trickle"])
def test_a_fault_that_passes_changes_nothing(serve, fault, monkeypatch):
    server = serve()
    if fault in ("stall", "trickle"):
        monkeypatch.setattr(http, "_SILENCE", 0.3)
        monkeypatch.setattr(http, "_SLOWEST", 10_000_000)
    server.faults = [fault, fault]
    assert parts(RemoteBlob(server.url)) == PARTS
    assert len(server.requests) == 1 + 2 + 3


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_stays_is_named_after_a_few_tries(serve, fault, monkeypatch):
    server = serve()
    if fault == "stall":
        monkeypatch.setattr(http, "_SILENCE", 0.1)
    server.forever = fault
    blob = RemoteBlob(server.url)
    with pytest.raises(ConnectionError, match=r"x\.tar: not read in 5 tries: ."):
        blob.read(5, 10)
    assert len(server.requests) == 1 + 5


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("changed", "has changed since"), ("404", "HTTP 404"), ("whole", "no ranges")],
)
def test_what_no_try_would_change_is_named_at_once(serve, fault, reason):
    server = serve()
    server.forever = fault
    with pytest.raises(OSError, match=rf"x\.tar: .*{reason}"):
        RemoteBlob(server.url).read(5, 10)
    assert len(server.requests) == 2


def test_what_was_read_is_kept_until_the_file_changes(serve):
    server = serve()
    assert parts(RemoteBlob(server.url)) == PARTS
    server.requests.clear()
    assert parts(RemoteBlob(server.url)) == PARTS and len(server.requests) == 1
    server.content, server.tag = CONTENT[::-1], '"2"'
    assert RemoteBlob(server.url).read(0, 10) == CONTENT[::-1][:10]
    with pytest.raises(OSError, match="ends 1 bytes too early"):
        RemoteBlob(server.url).read(699_999, 2)


def test_the_kept_blocks_are_bounded(serve, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv(remote.GIGABYTES, str(1.5 * BLOCK / 1e9))
    server = serve()
    assert RemoteBlob(server.url).read(0, 700_000) == CONTENT
    kept = [path for path in (tmp_path / "caches").rglob("*") if path.is_file()]
    assert len(kept) == 1 and kept[0].stat().st_size <= BLOCK + 8
    assert "fetched again each time; raise BEIT_REMOTE_GIGABYTES" in caplog.text
    assert RemoteBlob(server.url).read(0, 700_000) == CONTENT
    remote._kept.cache_clear()
    monkeypatch.setenv(remote.GIGABYTES, "many")
    with pytest.raises(ValueError, match=r"BEIT_REMOTE_GIGABYTES is 'many'; expected a number"):
        RemoteBlob(server.url).read(0, 10)


# ── sources ─────────────────────────────────────────────────────────────────────────────────────


def png(level):
    buffer = io.BytesIO()
    Image.new("RGB", (5, 4), (level, 2, 3)).save(buffer, "PNG")
    return buffer.getvalue()


def tar_of(levels):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for level in levels:
            for name, data in ((f"{level:03}.png", png(level)), (f"{level:03}.cls", b"7")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def reds(source):
    return [int(source.image(index)[0, 0, 0]) for index in range(len(source))]


def test_a_shard_on_a_server_that_fails_often_is_read_right(serve, monkeypatch):
    monkeypatch.setattr(remote, "_BLOCK", 2000)
    monkeypatch.setattr("beit.data.archives.tar_index._AHEAD", 3000)
    server = serve(tar_of(range(40)))
    server.faults = [each for fault in PASSING if fault != "stall" for each in (fault, fault, "")]
    source = open_source(server.url)
    assert reds(source) == [*range(40)] and not server.faults
    assert source.labels.tolist() == [7] * 40 and file_of(source, 0) is None
    requests = len(server.requests)
    assert reds(open_source(server.url)) == [*range(40)]  # index and blocks are there
    assert len(server.requests) == requests + 1


def test_a_store_that_fails_ends_the_run_and_a_missing_image_is_unreadable(serve):
    server = serve(png(1))
    url = server.url.replace(".tar", ".png")
    source = open_source(url)
    server.forever = "drop"
    with pytest.raises(ConnectionError):
        source.image(0)
    server.forever = "404"
    with pytest.raises(UnreadableImage, match=r"x\.png: .*HTTP 404"):
        source.image(0)


@pytest.fixture
def memory(monkeypatch, tmp_path):
    """Puts files into fsspec's store in memory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setattr(remote, "_PAUSE", 0.001)
    remote._kept.cache_clear()
    store = fsspec.filesystem("memory")
    yield lambda name, content: store.pipe(f"/{name}", content)
    store.store.clear()
    store.pseudo_dirs[:] = [""]
    remote._kept.cache_clear()


def test_lists_folders_rows_and_patterns_in_a_store(memory):
    for level, name in enumerate(("b/apple/0.png", "b/lime/1.png", "b/lime/2.png")):
        memory(name, png(level))
    memory("b/list.txt", b"lime/2.png\napple/0.png\nmemory://b/gone.png\n")
    table = io.BytesIO()
    rows = [{"bytes": png(5), "path": None}, {"bytes": None, "path": "x.png"}]
    parquet.write_table(pyarrow.table({"image": rows, "label": ["a", "b"]}), table)
    memory("p/x-0.parquet", table.getvalue())
    memory("p/x-1.parquet", table.getvalue())
    folder = open_source("memory://b")
    assert reds(folder) == [0, 1, 2] and folder.class_names == ["apple", "lime"]
    listed = open_source("@memory://b/list.txt")
    assert [int(listed.image(place)[0, 0, 0]) for place in (0, 1)] == [2, 0]
    with pytest.raises(UnreadableImage, match=r"gone\.png"):
        listed.image(2)
    for spec in ("memory://p/x-*.parquet", "memory://p/x-{0..1}.parquet"):
        source = open_source(spec)
        assert [source.name(index) for index in (0, 3)] == ["x-0.parquet[0]", "x-1.parquet[1]"]
        assert source.labels.tolist() == [0, 1, 0, 1] and int(source.image(2)[0, 0, 0]) == 5
        with pytest.raises(UnreadableImage, match="the row has a path, but no bytes"):
            source.image(1)


def test_what_a_store_lacks_is_named(memory):
    memory("b/x.arrow", b"x")
    parquet.write_table(pyarrow.table({"path": ["x.png"]}), table := io.BytesIO())
    memory("b/names.parquet", table.getvalue())
    for spec, error, reason in (
        ("memory://b/none.tar", FileNotFoundError, r"b/none\.tar"),
        ("memory://none", FileNotFoundError, "no such folder, or nothing in it"),
        ("memory://b/*.zip", FileNotFoundError, r"b/\*\.zip: no such file matches$"),
        ("memory://b/x.arrow", ValueError, "a remote Arrow file is not read"),
        ("memory://b/names.parquet", ValueError, "only encoded images are read"),
        ("s3://b/x.tar", ValueError, r's3fs is not installed: pip install "beit\[remote\]"'),
        ("nowhere://b/x.tar", ValueError, "unknown kind of data; expected s3://"),
    ):
        if spec.startswith("s3") and remote.importlib.util.find_spec("s3fs"):
            continue
        with pytest.raises(error, match=reason):
            open_source(spec)


def test_a_list_names_remote_files_or_others_not_both(memory, tmp_path):
    memory("b/0.png", png(3))
    (tmp_path / "list").write_text("memory://b/0.png\nmemory://b/0.png\n")
    assert reds(open_source(f"@{tmp_path}/list")) == [3, 3]
    (tmp_path / "list").write_text("memory://b/0.png\nx.png\n")
    with pytest.raises(ValueError, match=r"line 2: x\.png: expected only remote files or none"):
        open_source(f"@{tmp_path}/list")


def test_forked_processes_read_on_their_own(memory):
    memory("b/x.tar", tar_of(range(9)))
    source = open_source("memory://b/x.tar")
    first = [source.image(index) for index in range(9)]
    child = os.fork()
    if child == 0:
        same = all(torch.equal(source.image(index), first[index]) for index in range(9))
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
