import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from beit.weights import hub
from beit.weights.formats.transformers_beit import to_transformers
from beit.weights.formats.transformers_config import transformers_config
from beit.weights.open import holds_segmenter, load
from beit.weights.shards import refuse_shard, weight_map

COUNT = 3
HALVES = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


def shard(number, stem="model", suffix=".safetensors"):
    return f"{stem}-{number + 1:05d}-of-{COUNT:05d}{suffix}"


def write(folder: Path, state, stem="model", suffix=".safetensors"):
    """Write a state in three files with an index, as transformers does. Returns: the index."""
    folder.mkdir(exist_ok=True)
    names = list(state)
    places = {name: shard(at * COUNT // len(names), stem, suffix) for at, name in enumerate(names)}
    for number in range(COUNT):
        file = shard(number, stem, suffix)
        part = {name: state[name] for name in names if places[name] == file}
        save = save_file if suffix == ".safetensors" else torch.save
        save(part, folder / file)
    index = folder / f"{stem}{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 9}, "weight_map": places}))
    return index


@pytest.fixture
def state(classifier):
    return {name: tensor.contiguous() for name, tensor in to_transformers(classifier).items()}


@pytest.mark.parametrize(("stem", "suffix"), [("model", ".safetensors"), ("pytorch_model", ".bin")])
def test_sharded_weights_are_those_of_one_file(stem, suffix, state, classifier, tmp_path):
    index = write(tmp_path / "parted", state, stem, suffix)
    config = transformers_config(classifier)
    config["id2label"] = {str(number): f"class {number}" for number in range(5)}
    (tmp_path / "parted" / "config.json").write_text(json.dumps(config))
    for source in (tmp_path / "parted", index, str(index)):
        read = load(source)
        assert read.config.class_names == tuple(f"class {number}" for number in range(5))
        ours = classifier.state_dict()
        assert all(torch.equal(tensor, ours[name]) for name, tensor in read.state_dict().items())
        assert not holds_segmenter(source)


def test_a_folder_that_transformers_saved(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 3}
    sizes |= {"intermediate_size": 24, "image_size": 12, "patch_size": 4}
    sizes |= {"layer_norm_eps": 1e-6}
    config = transformers.BeitConfig(**sizes, use_relative_position_bias=True)
    torch.manual_seed(0)
    model = transformers.BeitForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "parted", max_shard_size="8KB")
    assert len(list((tmp_path / "parted").glob("*.safetensors"))) > 1
    images = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, parted = (load(tmp_path / name)(images) for name in ("whole", "parted"))
        assert torch.equal(whole, parted)
        torch.testing.assert_close(parted, model(2 * images - 1).logits, atol=1e-5, rtol=1e-5)


def test_a_single_shard_is_refused_with_its_index(state, tmp_path):
    index = write(tmp_path, state)
    with pytest.raises(ValueError, match=r"saved in 3 files; give .* model\.safetensors\.index"):
        load(tmp_path / shard(1))
    index.unlink()
    with pytest.raises(ValueError, match=r"model-00001-of-00003.*give the index of all, model\.s"):
        load(tmp_path)
    refuse_shard(tmp_path / "model-00001-of-00001.safetensors")  # it is the whole model


def test_missing_files_are_named(state, tmp_path):
    index = write(tmp_path, state)
    (tmp_path / shard(1)).unlink()
    with pytest.raises(FileNotFoundError, match=rf"names {shard(1)}, which is not beside it"):
        load(index)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda part: part.pop(min(part)), r"\w+\.\S+$"),
        (lambda part: part.update(more=torch.zeros(1)), "more$"),
    ],
)
def test_files_that_differ_from_the_index_are_refused(change, message, state, tmp_path):
    index = write(tmp_path, state)
    part = {name: state[name] for name, file in weight_map(index).items() if file == shard(0)}
    change(part)
    save_file(part, tmp_path / shard(0))
    expected = rf"only one of .*{shard(0)} and model\.safetensors\.index\.json has {message}"
    with pytest.raises(ValueError, match=expected):
        load(index)


def test_a_tensor_in_two_files_is_refused(state, tmp_path):
    index = write(tmp_path, state)
    name = next(name for name, file in weight_map(index).items() if file == shard(0))
    part = {other: state[other] for other, file in weight_map(index).items() if file == shard(2)}
    save_file(part | {name: state[name]}, tmp_path / shard(2))
    with pytest.raises(ValueError, match=rf"{shard(2)} and model.* has {name}"):
        load(index)


OUTSIDE = r"expected NAME\.safetensors"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"weight_map": {"a": "../w.safetensors"}}', OUTSIDE),
        ('{"weight_map": {"a": "/tmp/w.safetensors"}}', OUTSIDE),
        ('{"weight_map": {"a": "b/w.bin"}}', OUTSIDE),
        (r'{"weight_map": {"a": "..\\w.bin"}}', OUTSIDE),
        ('{"weight_map": {"a": ".."}}', OUTSIDE),
        ('{"weight_map": {"a": "w.index.json"}}', OUTSIDE),
        ('{"weight_map": {"a": 7}}', OUTSIDE),
        ('{"weight_map": {"a": "v.bin", "a": "w.bin"}}', "a occurs twice"),
        ('{"weight_map": {}}', "has no weight_map"),
        ('{"weight_map": ["w.bin"]}', "has no weight_map"),
        ("[]", "holds a list, expected an object"),
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
    ],
)
def test_an_index_that_is_damaged_or_leaves_its_folder_is_refused(content, message, tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(content)
    with pytest.raises(ValueError, match=rf"model\.safetensors\.index\.json .*{message}"):
        load(index)


def put_shards(hugging_face, folder, left_out=()):
    for file in folder.iterdir():
        if file.name not in left_out:
            hugging_face(file.name, file.read_bytes())


def test_all_shards_come_from_the_hub(hugging_face, state, classifier, tmp_path):
    write(tmp_path / "made", state)
    (tmp_path / "made" / "config.json").write_text(json.dumps(transformers_config(classifier)))
    put_shards(hugging_face, tmp_path / "made")
    path = hub.fetch("hf://owner/name")
    assert path.name == "model.safetensors.index.json"
    files = sorted(file.name for file in path.parent.iterdir())
    assert files == sorted(file.name for file in (tmp_path / "made").iterdir())
    for source in ("hf://owner/name", "hf://owner/name/model.safetensors.index.json"):
        read = load(source, **HALVES)
        assert torch.equal(read.head.weight, classifier.head.weight)


def test_a_shard_that_the_hub_lacks_is_named(hugging_face, state, tmp_path):
    write(tmp_path / "made", state)
    put_shards(hugging_face, tmp_path / "made", left_out=[shard(1)])
    with pytest.raises(OSError, match=rf"names {shard(1)}, which is missing \(404"):
        hub.fetch("hf://owner/name")


def test_one_shard_of_the_hub_is_refused_before_its_download(hugging_face, server):
    with pytest.raises(ValueError, match=r"give the index of all, model\.safetensors\.index\.json"):
        hub.fetch("hf://owner/name/model-00001-of-00003.safetensors")
    assert not server.requests


def test_older_repositories_have_a_checkpoint(hugging_face, classifier, tmp_path):
    torch.save(to_transformers(classifier), tmp_path / "w.bin")
    hugging_face("pytorch_model.bin", (tmp_path / "w.bin").read_bytes())
    hugging_face("config.json", json.dumps(transformers_config(classifier)).encode())
    read = load("hf://owner/name", **HALVES)
    assert torch.equal(read.head.weight, classifier.head.weight)
