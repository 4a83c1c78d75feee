import hashlib
import json
import re
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file

from beit.weights import hub, manifest
from beit.weights.file import save_weights
from beit.weights.formats.published import to_published
from beit.weights.manifest import PublishedFile
from beit.weights.open import load, load_tokenizer
from beit.weights.teachers import load_teacher

GOLDENS = Path(__file__).parents[1] / "goldens"
CLOSED = "http://127.0.0.1:1"  # nothing listens there


@pytest.fixture
def publish(server, make_served, monkeypatch, tmp_path):
    """Publishes one file, and moves the cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def publish_file(content, address=server.address, **changes):
        digest = hashlib.sha256(content).hexdigest()[:8]
        server.files["/weights-x.pth"] = make_served(content)
        about = {"name": "tiny", "file": "weights-x.pth", "url": f"{address}/weights-x.pth"}
        about |= {"what": "a test", "model": "VQKD", "shapes": {}, "sha256": digest}
        file = PublishedFile(**(about | changes))
        monkeypatch.setattr(manifest, "published_files", lambda: {"tiny": file})
        return tmp_path / "torch" / "hub" / "checkpoints" / file.file

    return publish_file


# ── published: ──────────────────────────────────────────────────────────────────────────────────


def test_a_published_file_is_fetched_into_torch_hubs_cache_once(publish, server):
    path = publish(b"weights")
    assert hub.fetch("published:tiny") == path
    assert path.read_bytes() == b"weights"
    assert hub.fetch("published:weights-x.pth") == path
    assert len(server.requests) == 1


def test_a_file_in_the_cache_is_checked(publish):
    path = publish(b"weights")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"others")
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} has the name of a published"):
        hub.fetch("published:tiny")
    assert path.read_bytes() == b"others"  # it is the user's


def test_a_tokenizer_is_loaded_by_its_published_name(publish, tokenizer, tmp_path):
    torch.save({"model": to_published(tokenizer)}, tmp_path / "made.pth")
    publish((tmp_path / "made.pth").read_bytes())
    read = load_tokenizer("published:tiny", num_heads=2, image_size=(12, 20))
    images = torch.rand(2, 3, 12, 20, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(read.encode(images), tokenizer.encode(images))


def test_another_model_under_a_published_name_is_refused(publish, tokenizer, tmp_path):
    torch.save({"model": to_published(tokenizer)}, tmp_path / "made.pth")
    publish((tmp_path / "made.pth").read_bytes(), model="ImageClassifier", sha256=None)
    with pytest.raises(
        ValueError, match=r"published:tiny is an Image.*x\.pth holds a VQKD.*Delete"
    ):
        load("published:tiny", num_heads=2, image_size=(12, 20))


def test_a_file_anywhere_is_checked_when_it_is_loaded(publish, tokenizer, tmp_path):
    path = tmp_path / "weights-x.pth"
    torch.save({"model": to_published(tokenizer)}, path)
    publish(path.read_bytes())
    assert load(path, num_heads=2, image_size=(12, 20)).config == tokenizer.config
    torch.save({"model": to_published(tokenizer), "more": 1}, path)
    with pytest.raises(ValueError, match=r"weights-x\.pth has the name of a published file, but"):
        load(path, num_heads=2, image_size=(12, 20))


def test_settings_that_the_file_lacks_come_from_the_manifest(publish, tokenizer, tmp_path):
    path = tmp_path / "weights-x.pth"
    torch.save({"model": to_published(tokenizer)}, path)
    publish(path.read_bytes(), settings={"num_heads": 2, "mean": [0.1, 0.2, 0.3]})
    for source in ("published:tiny", path):
        assert load(source, image_size=(12, 20)).config.encoder.mean == (0.1, 0.2, 0.3)
    read = load(path, image_size=(12, 20), mean=(0.4, 0.5, 0.6), num_heads=4)
    assert read.config.encoder.mean == (0.4, 0.5, 0.6)
    assert read.config.encoder.num_heads == 4


def test_a_teacher_is_loaded_by_its_published_name(publish, tmp_path):
    tensors = load_file(GOLDENS / "teacher_dino.safetensors")
    state = {name[6:]: tensor for name, tensor in tensors.items() if name.startswith("state/")}
    torch.save(state, tmp_path / "dino.pth")
    publish((tmp_path / "dino.pth").read_bytes())
    heads = json.loads((GOLDENS / "teacher_dino.json").read_text())["num_heads"]
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    found, expected = (
        load_teacher(source, num_heads=heads).features(images, (2, 3))
        for source in ("published:tiny", tmp_path / "dino.pth")
    )
    assert torch.equal(found, expected)


def test_without_a_network_the_error_names_the_file_and_its_folder(publish):
    path = publish(b"weights", address=CLOSED)
    with pytest.raises(OSError) as error:
        hub.fetch("published:tiny")
    for part in ("weights-x.pth is not in", str(path.parent), f"{CLOSED}/weights-x.pth", "refused"):
        assert part in str(error.value)


def test_a_missing_published_file_is_reported(publish, server):
    publish(b"weights")
    server.files.clear()
    with pytest.raises(OSError, match=r"could not be fetched from .*404.*put it there under this"):
        hub.fetch("published:tiny")


def test_a_published_file_that_changed_is_refused(publish, server, make_served):
    path = publish(b"weights")
    server.files["/weights-x.pth"] = make_served(b"others")
    with pytest.raises(ValueError, match="does not give the published weights-x"):
        hub.fetch("published:tiny")
    assert not path.exists()


# ── hf:// ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hf://owner/name", ("owner/name", None, None)),
        ("hf://owner/name@v1.0", ("owner/name", "v1.0", None)),
        ("hf://owner/name/a/b.pth", ("owner/name", None, "a/b.pth")),
        ("hf://owner/name@refs/pr/3/b.pth", ("owner/name", "refs/pr/3", "b.pth")),
    ],
)
def test_location(source, expected):
    assert hub.location(source) == expected


@pytest.mark.parametrize("source", ["hf://name", "hf://datasets/owner/name", "hf://", "hf://a/b@"])
def test_location_refuses_other_sources(source):
    with pytest.raises(ValueError, match="expected hf://OWNER/NAME"):
        hub.location(source)


def test_our_weights_come_from_the_hub_and_later_from_its_cache(
    hugging_face, server, tokenizer, tmp_path, monkeypatch
):
    save_weights(tmp_path / "made.safetensors", tokenizer)
    hugging_face("weights.safetensors", (tmp_path / "made.safetensors").read_bytes())
    read = load_tokenizer("hf://owner/name")
    assert read.config == tokenizer.config
    monkeypatch.setattr(constants, "ENDPOINT", CLOSED)
    fetched = len(server.requests)
    assert load_tokenizer("hf://owner/name").config == tokenizer.config
    assert len(server.requests) == fetched


def test_the_configuration_of_transformers_weights_is_fetched_too(hugging_face):
    hugging_face("model.safetensors", b"tensors")
    hugging_face("config.json", b"{}")
    path = hub.fetch("hf://owner/name")
    assert path.name == "model.safetensors"
    assert path.read_bytes() == b"tensors"
    assert (path.parent / "config.json").read_bytes() == b"{}"
    assert not (path.parent / "preprocessor_config.json").exists()  # the hub does not have it


def test_a_revision_and_a_file_of_a_repository(hugging_face):
    hugging_face("old/weights.pth", b"of v1", revision="v1")
    hugging_face("old/weights.pth", b"of main")
    assert hub.fetch("hf://owner/name/old/weights.pth").read_bytes() == b"of main"
    assert hub.fetch("hf://owner/name@v1/old/weights.pth").read_bytes() == b"of v1"


def test_a_repository_without_weights_is_reported(hugging_face):
    with pytest.raises(FileNotFoundError, match=r"no weights\.safetensors nor model\.safetensors"):
        hub.fetch("hf://owner/name")


def test_a_repository_that_is_not_there_or_private(hugging_face, server):
    server.missing = (("X-Error-Code", "RepoNotFound"),)
    with pytest.raises(OSError, match=r"hf://owner/name could not be fetched: 404.*hf auth login"):
        hub.fetch("hf://owner/name")


def test_an_unreachable_hub_is_reported(hugging_face, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", CLOSED)
    message = (
        r"cannot be reached \(.*refused.*download weights\.safetensors or model\.safetensors else"
    )
    with pytest.raises(OSError, match=message):
        hub.fetch("hf://owner/name")


# ── pushing ─────────────────────────────────────────────────────────────────────────────────────


class Api:
    """A fake of the hub's API that records calls."""

    calls: list

    def __init__(self, **about):
        assert about["library_name"] == "beit"

    def create_repo(self, repository, **options):
        self.calls.append(("create", repository, options))
        return f"https://huggingface.co/{repository}"

    def model_info(self, repository):
        return type("Info", (), {"private": "private" in repository})

    def create_commit(self, repository, operations, commit_message):
        contents = {}
        for operation in operations:
            with operation.as_file() as file:
                contents[operation.path_in_repo] = file.read()
        self.calls.append(("commit", repository, contents))


@pytest.fixture
def api(monkeypatch, server):
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_test")
    Api.calls = []
    return Api


def test_push_makes_a_repository_and_one_commit(api, tmp_path):
    (tmp_path / "w").write_bytes(b"tensors")
    address = hub.push("me/mine", {"weights.safetensors": tmp_path / "w"}, "# Mine\n")
    assert address == "https://huggingface.co/me/mine"
    assert api.calls == [
        ("create", "me/mine", {"private": None, "exist_ok": True}),
        ("commit", "me/mine", {"README.md": b"# Mine\n", "weights.safetensors": b"tensors"}),
    ]


def test_a_private_push_refuses_a_public_repository(api):
    with pytest.raises(ValueError, match="me/mine exists and is public"):
        hub.push("me/mine", {}, "", private=True)
    assert [call[0] for call in api.calls] == ["create"]
    hub.push("me/private", {}, "", private=True)


def test_push_without_a_token_or_a_network(api, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(ValueError, match=r"hf auth login.*HF_TOKEN"):
        hub.push("me/mine", {}, "")
    monkeypatch.setattr(constants, "ENDPOINT", CLOSED)
    with pytest.raises(OSError, match=r"cannot be reached \(.*refused.*nothing was uploaded"):
        hub.push("me/mine", {}, "")
    assert api.calls == []


def test_an_error_of_the_hub_names_the_repository(api, monkeypatch):
    def refuse(*_, **__):
        raise OSError("403 Forbidden\nmore")

    monkeypatch.setattr(Api, "create_repo", refuse)
    with pytest.raises(OSError, match=r"^me/mine could not be pushed: 403 Forbidden$"):
        hub.push("me/mine", {}, "")


def test_a_model_of_other_sizes_under_a_published_name_is_refused(publish, tokenizer, tmp_path):
    torch.save({"model": to_published(tokenizer)}, tmp_path / "made.pth")
    width = tokenizer.config.encoder.width
    publish((tmp_path / "made.pth").read_bytes(), shapes={"width": 768, "codes": 5}, sha256=None)
    with pytest.raises(ValueError, match=rf"is {{'width': 768}} .* holds {{'width': {width}}}"):
        load("published:tiny", num_heads=2, image_size=(12, 20))
