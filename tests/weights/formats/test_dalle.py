"""DALL-E's tokenizer from tensors by name, and from pickled modules of a package that is not here.

The package is made up: classes of its names, put together from a state dict as it puts its own
modules together, are pickled by torch, and gone when the file is read.
"""

import functools
import json
import logging
import os
import struct
import sys
import types
import warnings
import zipfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from beit.nn.dalle import DalleConfig, DalleTokenizer
from beit.nn.tokenizer import VQKD, VQKDConfig, tokenizer_vit
from beit.weights.file import read_safetensors, save_weights
from beit.weights.formats.dalle import (
    from_dalle,
    read_dalle_folder,
    read_pickled_module,
    recognises,
    to_dalle,
)
from beit.weights.formats.published import to_published
from beit.weights.open import load, load_tokenizer

GOLDENS = Path(__file__).parents[2] / "goldens"
NOT_LEGACY = {"_use_new_zipfile_serialization": False}
WRITTEN = [{}, NOT_LEGACY, {"pickle_protocol": 4}, {"pickle_protocol": 4} | NOT_LEGACY]


@pytest.fixture(scope="module")
def golden():
    """Sizes, and tensors by part: encoder, decoder, in, out."""
    parts = {}
    for path, tensor in load_file(GOLDENS / "dalle.safetensors").items():
        part, key = path.split("/")
        parts.setdefault(part, {})[key] = tensor
    return json.loads((GOLDENS / "dalle.json").read_text()), parts


@pytest.fixture(scope="module")
def tiny():
    """The published tensors of a tiny tokenizer."""
    torch.manual_seed(0)
    config = DalleConfig((16, 24), num_codes=13, width=4, blocks_per_group=2, code_width=5)
    model = DalleTokenizer(config)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape) / 3)
    return to_dalle(model)


def part(state, name):
    return {key.removeprefix(f"{name}."): state[key] for key in state if key.startswith(name)}


class FakeModule(nn.Module):
    """A module whose fields are of the kinds that the package's are."""

    def __init__(self, state, layers=()):
        super().__init__()
        self.n_in, self.use_float16, self.device = 3, True, torch.device("cpu")
        self.make_conv = functools.partial(nn.Conv2d, bias=True)
        for name, tensor in state.items():
            self.register_parameter(name, nn.Parameter(tensor))
        for name, layer in layers:
            self.add_module(name, layer)


def fake_package():
    """Classes by the names of DALL-E's package, which torch finds as long as they are there."""
    package = {}
    for where, names in (
        ("dall_e.utils", ["Conv2d"]),
        ("dall_e.encoder", ["Encoder", "EncoderBlock"]),
        ("dall_e.decoder", ["Decoder", "DecoderBlock"]),
    ):
        module = types.ModuleType(where)
        for name in names:
            package[name] = type(name, (FakeModule,), {"__module__": where})
            setattr(module, name, package[name])
        package[where] = module
    package["dall_e"] = types.ModuleType("dall_e")
    return package


def assembled(state, side, package, depth=0):
    """Nest modules by their dotted names, each with its class in the package."""
    if "w" in state:
        return package["Conv2d"](state)
    inner = {}
    for name, tensor in state.items():
        head, _, rest = name.partition(".")
        inner.setdefault(head, {})[rest] = tensor
    layers = []
    for name, members in inner.items():
        if name.startswith("conv"):
            layers.append((name.replace("conv", "relu"), nn.ReLU()))
        layers.append((name, assembled(members, side, package, depth + 1)))
    if depth == 0:
        return package[side]({}, layers)
    if "res_path" in inner:
        if "id_path" not in inner:
            layers.append(("id_path", nn.Identity()))
        return package[f"{side}Block"]({}, layers)
    if "block_1" in inner:
        layers.append(("pool", nn.MaxPool2d(2) if side == "Encoder" else nn.Upsample(None, 2.0)))
    return nn.Sequential(OrderedDict(layers))


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Pickle a module as the package's would be; the package is gone again afterwards."""

    def write(name, state, change=None, **how):
        package = fake_package()
        for where in ("dall_e", "dall_e.utils", "dall_e.encoder", "dall_e.decoder"):
            monkeypatch.setitem(sys.modules, where, package[where])
        module = assembled(state, name.capitalize().removesuffix(".pkl"), package)
        if change is not None:
            change(module)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that sources were not found
            torch.save(module, tmp_path / name, **how)
        monkeypatch.undo()
        return tmp_path / name

    return write


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_computes_what_the_published_code_computes(golden):
    sizes, parts = golden
    state = {f"{side}.{k}": v for side in ("encoder", "decoder") for k, v in parts[side].items()}
    assert recognises(state)
    model = from_dalle(state, image_size=16)
    assert model.config == DalleConfig(
        image_size=(16, 16),
        num_codes=sizes["vocab_size"],
        width=sizes["n_hid"],
        blocks_per_group=sizes["blocks_per_group"],
        code_width=sizes["n_init"],
    )
    images, expected = parts["in"]["images"], parts["out"]
    # 1e-4 is the tolerance that the goldens ask for; the sums are the same, in the same order.
    torch.testing.assert_close(model.logits(images), expected["logits"], rtol=0, atol=1e-4)
    codes = model.encode(images)
    assert torch.equal(codes, expected["tokens"].flatten(1))
    painted = model.decode_images(codes)
    torch.testing.assert_close(painted, expected["decoded_images"], rtol=0, atol=1e-4)


def test_the_encoder_alone_is_a_tokenizer(golden, caplog):
    parts = golden[1]
    with caplog.at_level(logging.INFO, "beit"):
        model = from_dalle(parts["encoder"], origin="encoder.pkl")
    assert "encoder.pkl: DALL-E's encoder alone, which cannot decode images" in caplog.text
    assert torch.equal(model.encode(parts["in"]["images"]), parts["out"]["tokens"].flatten(1))
    assert (model.vocab_size, model.grid, model.training) == (512, (14, 14), False)
    with pytest.raises(ValueError, match="an encoder only"):
        model.decode_images(torch.zeros(1, 4, dtype=torch.int64))


def test_published_to_ours_to_published_is_the_identity(tiny, golden):
    assert_same(to_dalle(from_dalle(tiny)), tiny)
    for separator in "./":
        state = {
            f"{side}{separator}{name}": tensor.float()
            for side in ("encoder", "decoder")
            for name, tensor in golden[1][side].items()
        }
        back = to_dalle(from_dalle(state))
        assert_same(back, {name.replace("/", "."): tensor for name, tensor in state.items()})


def test_our_own_file_keeps_the_model(tiny, tmp_path):
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    for state in (tiny, part(tiny, "encoder")):
        model = from_dalle(state, image_size=(16, 24))
        save_weights(tmp_path / "weights.safetensors", model)
        read = load(tmp_path / "weights.safetensors")
        assert isinstance(read, DalleTokenizer)
        assert read.config == model.config
        assert torch.equal(read.logits(images), model.logits(images))
        assert not any(parameter.requires_grad for parameter in read.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks_per_group": 10**9}, "claims 1000000000 blocks and has 150 tensors"),
        ({"width": 4 * 10**12}, "cannot be built"),
        ({"width": 4000}, r"encoder\.stem\.weight is \(4, 3, 7, 7\), expected \(4000, 3, 7, 7\)"),
        ({"decoder": False}, r"decoder\.groups\.0\.0\.convs\.0\.bias is unexpected"),
    ],
)
def test_our_own_file_with_forged_numbers_is_refused(tiny, tmp_path, change, message):
    path = tmp_path / "weights.safetensors"
    save_weights(path, from_dalle(tiny))
    tensors, metadata = read_safetensors(path)
    about = json.loads(metadata["beit"])
    about["config"] |= change
    save_file(tensors, path, {"beit": json.dumps(about)})
    with pytest.raises(ValueError, match=message):
        load(path)


@pytest.mark.parametrize("how", WRITTEN)
@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_pickled_modules_are_read_without_their_package(tiny, write, side, how):
    path = write(f"{side}.pkl", part(tiny, side), **how)
    assert "dall_e" not in sys.modules
    assert zipfile.is_zipfile(path) == ("_use_new_zipfile_serialization" not in how)
    assert_same(read_pickled_module(path), part(tiny, side))


@pytest.mark.filterwarnings("ignore")  # that sources were not found
def test_sources_in_the_file_are_passed_over(tiny, write, monkeypatch):
    """Older torch writes the source of each class beside it."""
    import inspect

    monkeypatch.setattr(inspect, "getsourcelines", lambda _: (["raise SystemExit\n"], 0))
    monkeypatch.setattr(inspect, "getsourcefile", lambda _: "/the/package.py")
    path = write("encoder.pkl", part(tiny, "encoder"), **NOT_LEGACY)
    assert b"raise SystemExit" in path.read_bytes()
    assert_same(read_pickled_module(path), part(tiny, "encoder"))


def test_half_precision_and_shared_storage_are_read(tiny, write):
    halves = {name: tensor.half() for name, tensor in part(tiny, "encoder").items()}
    assert_same(read_pickled_module(write("encoder.pkl", halves)), halves)
    whole = torch.arange(100.0)
    state = {"blocks.input.w": whole[4:10].view(2, 3), "blocks.input.b": whole[::7]}
    for how in ({}, NOT_LEGACY):
        assert_same(read_pickled_module(write("encoder.pkl", state, **how)), state)


def test_two_files_make_one_tokenizer(tiny, write, tmp_path):
    encoder = write("encoder.pkl", part(tiny, "encoder"))
    assert_same(read_dalle_folder(tmp_path), {k: v for k, v in tiny.items() if "encoder" in k})
    decoder = write("decoder.pkl", part(tiny, "decoder"), **NOT_LEGACY)
    assert_same(read_dalle_folder(tmp_path), tiny)
    assert read_dalle_folder(tmp_path / "nowhere") is None
    state = read_pickled_module(encoder)
    assert_same(to_dalle(from_dalle(state, decoder=decoder)), tiny)
    save_file(part(tiny, "decoder"), tmp_path / "decoder.safetensors")
    assert_same(to_dalle(from_dalle(state, decoder=tmp_path / "decoder.safetensors")), tiny)
    torch.save(part(tiny, "decoder"), tmp_path / "decoder.pth")
    assert_same(to_dalle(from_dalle(state, decoder=str(tmp_path / "decoder.pth"))), tiny)
    with pytest.raises(ValueError, match=r"encoder\.pkl is not DALL-E's decoder; got encoder\."):
        from_dalle(state, decoder=encoder)
    with pytest.raises(ValueError, match="has a decoder already"):
        from_dalle(tiny, decoder=decoder)
    with pytest.raises(FileNotFoundError, match=r"absent\.pkl is not a file; expected DALL-E's"):
        from_dalle(state, decoder=tmp_path / "absent.pkl")


@pytest.mark.parametrize("name", ["encoder.pkl", "dall_e_encoder.pkl"])  # as published, as fetched
def test_files_and_folders_are_loaded(golden, write, tmp_path, name):
    parts = golden[1]
    images, expected = parts["in"]["images"], parts["out"]
    write("encoder.pkl", parts["encoder"]).rename(tmp_path / name)
    tokens = expected["tokens"].flatten(1)
    model = load_tokenizer(tmp_path / name, image_size=16)
    assert isinstance(model, DalleTokenizer)
    assert torch.equal(model.encode(images), tokens)
    decoder = write("decoder.pkl", parts["decoder"], **NOT_LEGACY)
    sources = [(tmp_path / name, {"decoder": decoder})]
    if name == "encoder.pkl":
        sources.append((tmp_path, {}))
    for source, overrides in sources:
        model = load_tokenizer(source, **overrides)
        assert model.grid == (14, 14)
        painted = model.decode_images(tokens)  # of four codes: a square
        torch.testing.assert_close(painted, expected["decoded_images"], rtol=0, atol=1e-4)
    save_file(to_dalle(model), tmp_path / "dalle.safetensors")
    assert load_tokenizer(tmp_path / "dalle.safetensors").config == model.config


def test_a_harmful_file_is_refused_by_its_name(tiny, write, tmp_path):
    path = write(
        "encoder.pkl",
        part(tiny, "encoder"),
        lambda module: setattr(module, "harm", Harm(tmp_path / "trace")),
    )
    for source in (path, tmp_path):
        with pytest.raises(ValueError, match=r"encoder\.pkl .*names .*mkdir"):
            load_tokenizer(source)
    torch.save(Harm(tmp_path / "trace"), path)
    with pytest.raises(ValueError, match=r"encoder\.pkl is refused.*mkdir"):
        load_tokenizer(path)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("name", ["encoder.pkl", "dall_e_encoder.pkl"])
def test_another_model_by_its_name_is_refused(tmp_path, name):
    encoder = replace(tokenizer_vit((32, 32)), width=8, depth=1, num_heads=2)
    state = to_published(VQKD(VQKDConfig(encoder, 1, num_codes=5, code_width=4, teacher_width=3)))
    torch.save({"model": state}, tmp_path / name)
    with pytest.raises(ValueError, match="DALL-E's tokenizer, but holds another model: published"):
        load_tokenizer(tmp_path / name)


class Harm:
    """Makes a directory when unpickled."""

    def __init__(self, directory):
        self.directory = directory

    def __reduce__(self):
        return os.mkdir, (str(self.directory),)


@pytest.mark.parametrize("how", WRITTEN)
def test_anything_else_is_refused_before_it_runs(tiny, write, tmp_path, how):
    trace = tmp_path / "trace"
    for place in ("harm", "forward"):
        path = write(
            "encoder.pkl",
            part(tiny, "encoder"),
            lambda module, place=place: setattr(module, place, Harm(trace)),
            **how,
        )
        with pytest.raises(ValueError, match=r"encoder\.pkl .*names .*mkdir.*Nothing .* executed"):
            read_pickled_module(path)
    assert not trace.exists()


@pytest.mark.parametrize("how", WRITTEN[:2])
def test_modules_that_hold_themselves_are_refused(tiny, write, how):
    path = write(
        "encoder.pkl",
        part(tiny, "encoder"),
        lambda module: module.add_module("self", module),
        **how,
    )
    with pytest.raises(ValueError, match=r"encoder\.pkl .*contain each other endlessly"):
        read_pickled_module(path)


def rewritten(path, change):
    """Rewrite a zip archive with the bytes of each entry changed."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, change(name, content))


def test_archives_that_claim_more_than_they_hold_are_refused(tiny, write):
    path = write("encoder.pkl", part(tiny, "encoder"))
    rewritten(path, lambda name, content: content[:-4] if name.endswith("data/1") else content)
    with pytest.raises(ValueError, match=r"encoder\.pkl .*data/1 has \d+ bytes, expected \d+"):
        read_pickled_module(path)
    # The number of elements, as the pickle says it: 4 of a bias become a trillion.
    path = write("encoder.pkl", part(tiny, "encoder"))
    short, long = b"X\x03\x00\x00\x00cpu", b"\x8a\x06" + (10**12).to_bytes(6, "little")

    def enlarged(name, content):
        if not name.endswith("data.pkl"):
            return content
        at = content.index(short) + len(short)
        if content[at : at + 1] == b"q":
            at += 2
        size = {b"K": 2, b"M": 3, b"J": 5}[content[at : at + 1]]
        return content[:at] + long + content[at + size :]

    rewritten(path, enlarged)
    with pytest.raises(ValueError, match=r"encoder\.pkl .* expected 4000000000000"):
        read_pickled_module(path)


def test_legacy_files_that_claim_more_than_they_hold_are_refused(tiny, write):
    path = write("encoder.pkl", part(tiny, "encoder"), **NOT_LEGACY)
    content = path.read_bytes()
    for cut in (1, 40, len(content) // 2, len(content) - 3000):
        path.write_bytes(content[:-cut])
        with pytest.raises(ValueError, match=r"encoder\.pkl is not a sound pickled module"):
            read_pickled_module(path)
    # The last storage, of 4 elements or more, claims a trillion.
    sizes = {tensor.numel() for tensor in part(tiny, "encoder").values()}
    at = max(content.rfind(struct.pack("<q", size)) for size in sizes)
    path.write_bytes(content[:at] + struct.pack("<q", 10**12) + content[at + 8 :])
    with pytest.raises(ValueError, match=r"encoder\.pkl .*1000000000000 elements, expected"):
        read_pickled_module(path)


def test_other_files_are_left_to_others(tiny, tmp_path):
    path = tmp_path / "file"
    for how in WRITTEN[:2]:
        torch.save({"dall_e.weight": torch.zeros(2)}, path, **how)
        assert read_pickled_module(path) is None
        torch.save(tiny, path, **how)
        assert read_pickled_module(path) is None
        torch.save({"model": tiny, "harm": Harm(tmp_path / "trace")}, path, **how)
        assert read_pickled_module(path) is None
    for content in (b"", b"PK", b"PK\3\4dall_e.encoder", b"\x80", b"dall_e.encoder"):
        path.write_bytes(content)
        assert read_pickled_module(path) is None
    assert not (tmp_path / "trace").exists()


def test_recognised_by_its_names(tiny):
    assert recognises(tiny)
    assert recognises(part(tiny, "encoder"))
    assert recognises(part(tiny, "decoder"))
    assert not recognises({"encoder.0.0.weight": torch.zeros(2), "blocks.0.weight": torch.zeros(2)})


@pytest.mark.parametrize(
    ("change", "overrides", "message"),
    [
        (
            {"encoder.blocks.group_3.block_2.res_path.conv_4.b": None},
            {},
            r"d\.pkl does not fit a DalleTokenizer: encoder\.groups\.2\.1\.convs\.3\.bias is miss",
        ),
        ({"encoder.noise": torch.zeros(2)}, {}, r"encoder\.noise \(published name\) is unexpected"),
        (
            {"decoder.blocks.input.w": torch.zeros(5, 12, 1, 1)},
            {},
            r"decoder\.stem\.weight is \(5, 12, 1, 1\), expected \(5, 13, 1, 1\)",
        ),
        (
            {"encoder.blocks.output.conv.w": None},
            {},
            r"d\.pkl has no encoder\.blocks\.output\.conv",
        ),
        (
            {"encoder.blocks.input.w": torch.zeros(0, 3, 7, 7)},
            {},
            r"encoder\.blocks\.input\.w in d\.pkl is \(0, 3, 7, 7\), expected 4 sizes above 0",
        ),
        ({"encoder.blocks.input.w": None}, {}, r"d\.pkl does not hold .* but its decoder alone"),
        ({"encoder.blocks.input.w": torch.zeros(6, 3, 7, 7)}, {}, r"d\.pkl: width must be a multi"),
        ({}, {"image_size": (16, 20)}, r"d\.pkl: image size \(16, 20\) is not a multiple of .* 8"),
        ({}, {"mean": (0.5,) * 3}, r"d\.pkl takes no override mean; expected image_size, decoder"),
    ],
)
def test_what_does_not_fit_is_refused(tiny, change, overrides, message):
    state = {name: tensor for name, tensor in (tiny | change).items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        from_dalle(state, origin="d.pkl", **overrides)


def test_a_decoder_alone_is_no_tokenizer(tiny):
    with pytest.raises(ValueError, match=r"its decoder alone; give encoder\.pkl, or the folder"):
        from_dalle(part(tiny, "decoder"), origin="decoder.pkl")
