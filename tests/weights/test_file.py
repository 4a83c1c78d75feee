import copy
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from beit.weights.crop import stated_crop
from beit.weights.file import read_safetensors, save, save_weights
from beit.weights.open import load


def same(one, other):
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("kind", ["tokenizer", "pretrained", "classifier", "backbone"])
def test_saved_and_read_is_the_identity(kind, request, tmp_path):
    model = request.getfixturevalue(kind).train()
    save_weights(tmp_path / "weights.safetensors", model)
    random_state = torch.random.get_rng_state()
    read = load(tmp_path / "weights.safetensors")
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert type(read) is type(model)
    assert read.config == model.config
    assert same(read, model)
    assert not read.training
    assert [file.name for file in tmp_path.iterdir()] == ["weights.safetensors"]


@pytest.mark.parametrize("kind", ["tokenizer", "backbone"])
def test_weights_that_are_not_finite_are_refused(kind, request, tmp_path):
    model = copy.deepcopy(request.getfixturevalue(kind))
    name = next(name for name, _ in model.named_parameters() if name.endswith("mlp.fc2.bias"))
    with torch.no_grad():
        model.get_parameter(name)[1] = torch.nan
    save_weights(tmp_path / "weights.safetensors", model)
    with pytest.raises(ValueError, match=rf"weights\.safetensors: not all .* finite in {name};"):
        load(tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=rf"mine\.safetensors is not written: .* in {name}, and"):
        save(model, tmp_path / "mine.safetensors")
    assert not (tmp_path / "mine.safetensors").exists()


def test_a_users_model_is_saved_with_its_crop(backbone, tmp_path):
    save(backbone, tmp_path / "new" / "mine.safetensors", crop_ratio=0.9)
    assert same(load(tmp_path / "new" / "mine.safetensors"), backbone)
    assert stated_crop(str(tmp_path / "new" / "mine.safetensors")) == (0.9, "")
    with pytest.raises(ValueError, match=r"'.*mine\.pth', expected a name that ends in \.safe"):
        save(backbone, tmp_path / "mine.pth")
    with pytest.raises(ValueError, match=r"an OptimizedModule cannot be saved; .* its _orig_mod"):
        save(torch.compile(backbone), tmp_path / "compiled.safetensors")


@pytest.mark.parametrize("kind", ["backbone", "classifier", "tokenizer"])
@pytest.mark.parametrize("prefix", ["", "net."])
def test_a_state_dict_of_ours_says_what_to_save(kind, prefix, request, tmp_path):
    state = request.getfixturevalue(kind).state_dict()
    torch.save({prefix + name: state[name] for name in state}, tmp_path / "mine.pth")
    with pytest.raises(ValueError, match=r"mine\.pth holds .* without its conf.*beit\.save\(model"):
        load(tmp_path / "mine.pth")


def test_metadata_describes_the_model(backbone, tmp_path):
    save_weights(tmp_path / "w.safetensors", backbone)
    _, metadata = read_safetensors(tmp_path / "w.safetensors")
    about = json.loads(metadata.pop("beit"))
    assert (metadata, about["version"], about["kind"]) == ({}, "1", "VisionTransformer")
    assert about["config"]["image_size"] == [16, 16]
    assert about["config"]["mean"] == [0.485, 0.456, 0.406]


def test_the_same_model_is_written_to_the_same_bytes(backbone, tmp_path):
    for name in ("one", "two"):
        save_weights(tmp_path / name, backbone)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_who_may_read_other_files_may_load(backbone, tmp_path):
    (tmp_path / "other").touch()
    save_weights(tmp_path / "w.safetensors", backbone)
    modes = [(tmp_path / name).stat().st_mode for name in ("other", "w.safetensors")]
    assert modes[0] == modes[1]


def test_normalisation_can_be_replaced_and_sizes_cannot(tokenizer, tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, tokenizer)
    read = load(path, mean=(0.1, 0.2, 0.3), num_heads=2, image_size=(12, 20), num_codes=11)
    assert torch.allclose(read.encoder.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    with pytest.raises(ValueError, match=r"w\.safetensors: num_heads=3 contradicts .* says 2"):
        load(path, num_heads=3)
    with pytest.raises(ValueError, match="takes no override depht; expected mean, std"):
        load(path, depht=3)


def rewritten(path, tensors=None, **changes):
    """Rewrite the file with some tensors or fields of the configuration changed."""
    held, metadata = read_safetensors(path)
    about = json.loads(metadata["beit"])
    about.update({name: changes.pop(name) for name in list(changes) if name in about})
    if changes:
        about["config"] |= changes
    save_file(held if tensors is None else tensors(held), path, {"beit": json.dumps(about)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 10**6}, r"cls_token is \(1, 1, 24\), expected \(1, 1, 1000000\)"),
        ({"width": 10**12}, "cannot be built"),
        ({"mean": None}, "mean and std go together"),
        ({"image_size": [40000, 40000]}, r"has no rel_pos_bias\.table of \d+ rows"),
        ({"num_heads": 0}, "w.safetensors: "),
        ({"depth": 10**9}, "claims 1000000000 blocks"),
        ({"width": "24"}, "width is '24', expected int"),
        ({"mlp_ratio": None}, "mlp_ratio is None, expected float"),
        ({"image_size": [16]}, r"image_size is \[16\]"),
        ({"relative_bias": "some"}, "relative_bias is 'some'"),
        ({"colour": 1}, "unknown fields: colour"),
        ({"num_heads": 5}, "not a multiple of num_heads"),
        ({"config": "{"}, "config is '{', expected a mapping"),
        ({"version": "2"}, "version '2', expected '1'"),
        ({"kind": "Oracle"}, "holds a 'Oracle'"),
        ({"kind": ["VQKD"]}, "holds a \\['VQKD'\\]"),
    ],
)
def test_forged_metadata_is_refused(backbone, tmp_path, changes, message):
    path = tmp_path / "w.safetensors"
    save_weights(path, backbone)
    rewritten(path, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_a_small_file_cannot_allocate_the_index_of_a_large_grid(backbone, tmp_path):
    """The index grows with the square of the number of patches, the table only linearly."""
    path = tmp_path / "w.safetensors"
    save_weights(path, backbone)
    grid = (300, 200)
    tables = {"rel_pos_bias.table": torch.zeros((2 * grid[0] - 1) * (2 * grid[1] - 1) + 3, 1)}
    rewritten(path, lambda held: held | tables, image_size=[1200, 800])
    with pytest.raises(ValueError, match=r"grid of 300 x 200 patches, too many"):
        load(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format": "pt"}, "is in no known layout: norm.bias"),
        ({"beit": "{"}, "metadata cannot be read"),
        ({"beit": "[]"}, "metadata cannot be read"),
        ({"beit": "{}"}, "metadata cannot be read"),
    ],
)
def test_metadata_of_others_is_refused(tmp_path, metadata, message):
    path = tmp_path / "w.safetensors"
    save_file({"norm.bias": torch.zeros(2)}, path, metadata)
    with pytest.raises(ValueError, match=message):
        load(path)


def test_tensors_that_do_not_fit_are_listed(backbone, tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, backbone)
    rewritten(
        path,
        lambda held: {
            ("noise" if name == "norm.bias" else name): tensor[..., :5]
            if name == "cls_token"
            else tensor
            for name, tensor in held.items()
        },
    )
    with pytest.raises(
        ValueError,
        match=r"norm\.bias is missing; noise is unexpected; "
        r"cls_token is \(1, 1, 5\), expected \(1, 1, 24\)",
    ):
        load(path)


def test_damaged_or_foreign_files_are_named(backbone, tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, backbone)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"w\.safetensors, of \d+ bytes, is not a sound"):
        load(path)
    with pytest.raises(FileNotFoundError, match="absent"):
        load(tmp_path / "absent.safetensors")


def test_only_bare_models_are_saved(backbone, tmp_path):
    with pytest.raises(ValueError, match="a Sequential cannot be saved"):
        save_weights(tmp_path / "w.safetensors", torch.nn.Sequential(backbone))
    assert list(tmp_path.iterdir()) == []


def test_failed_writing_keeps_the_older_file(backbone, tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_weights(path, backbone)

    def full(tensors, temporary, metadata):
        temporary.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("beit.weights.file.save_file", full)
    with pytest.raises(OSError, match="no space"):
        save_weights(path, backbone)
    assert list(tmp_path.iterdir()) == [path]
    assert load_file(path).keys() == backbone.state_dict().keys()


@pytest.mark.parametrize("change", ["head", "dropout", "blocks"])
def test_a_model_changed_without_its_configuration_is_not_saved(classifier, tmp_path, change):
    width = classifier.config.backbone.width
    if change == "head":
        classifier.head = torch.nn.Linear(width, 7)
    elif change == "dropout":
        classifier.head = torch.nn.Sequential(torch.nn.Dropout(0.1), torch.nn.Linear(width, 5))
    else:
        classifier.backbone.blocks = classifier.backbone.blocks[:1]
    path = tmp_path / "mine.safetensors"
    with pytest.raises(ValueError, match=r"mine\.safetensors is not written: .*model\.config = "):
        save(classifier, path)
    assert not path.exists()
    if change == "head":  # as the message says
        classifier.config = replace(classifier.config, num_classes=7, class_names=None)
        save(classifier, path)
        assert same(load(path), classifier)
