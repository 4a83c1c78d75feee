import hashlib
import io
import json

import pyarrow
import pytest
from huggingface_hub import constants
from PIL import Image
from pyarrow import parquet

from beit.data.sources import open_source
from beit.data.stores.hub import CONVERTED


@pytest.fixture
def publish(server, hugging_face, make_served, monkeypatch, tmp_path):
    """Publishes a data set: the red of one image by the file's name, at a revision."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    server.missing = (("X-Error-Code", "RevisionNotFound"),)

    def published(files, revision="main"):
        commit = hashlib.sha1(revision.encode()).hexdigest()
        names = [{"rfilename": name} for name in files]
        about = json.dumps({"id": "owner/name", "sha": commit, "siblings": names, "tags": []})
        api = "/api/datasets/owner/name"
        quoted = revision.replace("/", "%2F")
        for path in [f"{api}/revision/{quoted}", *([api] if revision == "main" else [])]:
            headers = (("Content-Type", "application/json"),)
            server.files[path] = make_served(about.encode(), headers=headers)
        for name, level in files.items():
            content = b"text" if level is None else rows(level)
            headers = (("X-Repo-Commit", commit),)
            served = make_served(content, hashlib.sha256(content).hexdigest(), headers)
            server.files[f"/datasets/owner/name/resolve/{commit}/{name}"] = served
        return server

    return published


def rows(level):
    image, table = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (4, 3), (level, 0, 0)).save(image, "PNG")
    columns = {"image": [{"bytes": image.getvalue(), "path": None}], "label": [level % 2]}
    parquet.write_table(pyarrow.table(columns), table)
    return table.getvalue()


def reds(spec, split=None):
    source = open_source(spec, split=split)
    return [int(source.image(index)[0, 0, 0]) for index in range(len(source))]


SET = "hf://datasets/owner/name"
FILES = {
    "README.md": None,
    "data/train-00000-of-00002.parquet": 1,
    "data/train-00001-of-00002.parquet": 2,
    "data/test-00000-of-00001.parquet": 3,
}


def test_a_split_is_chosen_by_name_or_purpose_and_fetched_alone(publish):
    server = publish(FILES)
    assert reds(SET, "train") == reds(f"{SET}:train") == reds(f"{SET}/data:train") == [1, 2]
    assert not any("test-" in request.path for request in server.requests)
    assert reds(SET, "test") == [3]
    source = open_source(f"{SET}:train")
    assert source.name(1) == "train-00001-of-00002.parquet[0]"
    assert source.labels.tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"several sets .*name one of them, as in .*name:test"):
        reds(SET)
    with pytest.raises(ValueError, match=r"no split 'dev'; it has test, train"):
        reds(f"{SET}:dev")
    assert len(open_source(f"{SET}:train[:50%]")) == 1


def test_configurations_are_folders_and_a_set_may_be_converted(publish):
    publish({"images.zip": None})
    publish({"a/train/0000.parquet": 4, "b/train/0000.parquet": 5}, CONVERTED)
    assert reds(f"{SET}/b:train") == [5] and reds(f"{SET}/a", "train") == [4]
    with pytest.raises(ValueError, match=r"several configurations; it has a, b\. Name one"):
        reds(SET)
    with pytest.raises(ValueError, match=r"no configuration 'c'; it has a, b"):
        reds(f"{SET}/c")
    publish({"x.parquet": 6}, "v2")
    assert reds(f"{SET}@v2") == [6]
    with pytest.raises(ValueError, match=r"name@v3: no such revision"):
        reds(f"{SET}@v3")


def test_a_set_without_rows_says_what_it_has(publish):
    publish({"images.zip": None, "README.md": None})
    with pytest.raises(ValueError, match=r"no Parquet files .*\.md, \.zip\); download it"):
        reds(SET)
    for name in ("hf://datasets/owner", "hf://owner/name"):
        with pytest.raises(ValueError, match="does not name a data set in the hub; expected hf://"):
            reds(name)


def test_without_a_network_only_what_was_fetched_whole_is_read(publish, monkeypatch):
    publish(FILES)
    assert reds(f"{SET}:train") == [1, 2]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert reds(f"{SET}:train") == [1, 2]
    with pytest.raises(OSError, match=r"test-00000-of-00001\.parquet .*"):
        reds(f"{SET}:test")
    with pytest.raises(OSError, match=r"HF_HUB_OFFLINE is set\), and this data set was not opened"):
        reds(f"{SET}@v2")
