import hashlib
import threading

import numpy as np
import pytest

from beit.weights.download import download

CONTENT = np.random.default_rng(0).bytes(5000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def url(server, make_served):
    server.files["/a/weights.pth"] = make_served(CONTENT)
    return f"{server.address}/a/weights.pth"


def files_in(folder):
    """The names of the files in a folder, without the lock."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_a_file_is_downloaded_and_nothing_else_remains(url, server, tmp_path, capsys):
    path = tmp_path / "cache" / "weights.pth"
    download(url, path, SHA256[:8])
    assert path.read_bytes() == CONTENT
    assert files_in(path.parent) == ["weights.pth"]
    assert f"fetching {url} into {path}" in capsys.readouterr().err
    download(url, path, SHA256[:8])  # no further request
    assert len(server.requests) == 1


def test_a_broken_connection_is_resumed(url, server, tmp_path):
    server.cuts = [1234, 2000]
    download(url, tmp_path / "weights.pth", SHA256)
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT
    assert [request.range for request in server.requests] == [None, "bytes=1234-", "bytes=3234-"]


def test_the_next_call_resumes_after_a_failed_one(url, server, tmp_path):
    server.cuts = [1234, 0]
    with pytest.raises(OSError, match="cut after 1234 of 5000 bytes"):
        download(url, tmp_path / "weights.pth", SHA256)
    assert files_in(tmp_path) == [".weights.pth.partial.version", "weights.pth.partial"]
    assert (tmp_path / "weights.pth.partial").read_bytes() == CONTENT[:1234]
    download(url, tmp_path / "weights.pth", SHA256)
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT
    assert server.requests[-1].range == "bytes=1234-"
    assert files_in(tmp_path) == ["weights.pth"]


def test_a_file_that_changed_on_the_server_is_downloaded_from_the_start(
    url, server, make_served, tmp_path
):
    server.cuts = [1234, 0]
    with pytest.raises(OSError, match="cut after"):
        download(url, tmp_path / "weights.pth")
    server.files["/a/weights.pth"] = make_served(CONTENT[::-1], version="2")
    download(url, tmp_path / "weights.pth")
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT[::-1]


def test_a_server_without_ranges_sends_the_whole_file(url, server, tmp_path):
    server.cuts, server.ranges = [1234], False
    download(url, tmp_path / "weights.pth")
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT


def test_a_download_killed_before_its_last_step_is_not_repeated(url, server, tmp_path):
    server.cuts = [4999, 0]
    with pytest.raises(OSError, match="4999 of 5000"):
        download(url, tmp_path / "weights.pth")
    (tmp_path / "weights.pth.partial").write_bytes(CONTENT)
    download(url, tmp_path / "weights.pth", SHA256)
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT
    assert server.requests[-1].range == "bytes=5000-"


def test_another_checksum_is_refused_and_nothing_remains(url, tmp_path):
    expected = "0" * 8
    with pytest.raises(
        ValueError, match=f"begins with {SHA256[:8]} instead of {expected}"
    ) as error:
        download(url, tmp_path / "weights.pth", expected)
    assert url in str(error.value)
    assert files_in(tmp_path) == []


def test_a_missing_file_is_requested_once(server, tmp_path):
    with pytest.raises(OSError, match="404"):
        download(f"{server.address}/none", tmp_path / "weights.pth")
    assert len(server.requests) == 1


def test_processes_that_need_the_same_file_download_it_once(url, server, tmp_path):
    path = tmp_path / "weights.pth"
    workers = [threading.Thread(target=download, args=(url, path, SHA256)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert path.read_bytes() == CONTENT
    assert len(server.requests) == 1
