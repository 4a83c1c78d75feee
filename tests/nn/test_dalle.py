from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beit.nn.dalle import DalleBlock, DalleConfig, DalleTokenizer
from beit.nn.tokenizer import Tokenizer

Shaken = Callable[[nn.Module], nn.Module]
CONFIG = DalleConfig(  # grid 2 x 3
    image_size=(16, 24), num_codes=13, width=4, blocks_per_group=1, code_width=5
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_images(height: int = 16, width: int = 24) -> Tensor:
    return torch.rand(2, 3, height, width, generator=seeded())


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_published_sizes() -> None:
    """From the widths in docs/reference/beit1.md, "DALL-E dVAE"; a block has four convolutions."""

    def block(channels: int, width: int, kernels: tuple[int, ...]) -> int:
        h = width // 4
        sides = [(channels, h), (h, h), (h, h), (h, width)]
        convs = sum(i * o * k * k + o for (i, o), k in zip(sides, kernels, strict=True))
        return convs + (channels * width + width if channels != width else 0)

    widths = [256, 512, 1024, 2048]
    encoder = 3 * 256 * 49 + 256 + 2048 * 8192 + 8192
    for before, width in zip([256, *widths], widths, strict=False):
        encoder += block(before, width, (3, 3, 3, 1)) + block(width, width, (3, 3, 3, 1))
    decoder = 8192 * 128 + 128 + 256 * 6 + 6
    for before, width in zip([128, *widths[::-1]], widths[::-1], strict=False):
        decoder += block(before, width, (1, 3, 3, 3)) + block(width, width, (1, 3, 3, 3))
    with torch.device("meta"):
        model = DalleTokenizer(DalleConfig())
        alone = DalleTokenizer(DalleConfig(decoder=False))
    assert num_parameters(model.encoder) == num_parameters(alone) == encoder
    assert num_parameters(model.decoder) == decoder
    assert isinstance(model, Tokenizer)
    assert (model.vocab_size, model.grid, model.image_size) == (8192, (14, 14), (112, 112))


def test_a_block_by_hand(shaken: Shaken) -> None:
    block = shaken(DalleBlock(5, 8, (3, 1, 3, 1), scale=0.25))
    maps = torch.randn(2, 5, 3, 4, generator=seeded())
    inner = maps
    for conv, padding in zip(block.convs, (1, 0, 1, 0), strict=True):
        inner = F.conv2d(inner.clamp(min=0), conv.weight, conv.bias, padding=padding)
    expected = F.conv2d(maps, block.shortcut.weight, block.shortcut.bias) + inner / 4
    assert expected.shape == (2, 8, 3, 4)
    torch.testing.assert_close(block(maps), expected)
    assert isinstance(DalleBlock(8, 8, (3, 3, 3, 1), 1.0).shortcut, nn.Identity)


def test_the_residual_branches_are_scaled_by_their_number() -> None:
    for blocks, scale in ((1, 1 / 16), (2, 1 / 64)):
        model = DalleTokenizer(replace(CONFIG, blocks_per_group=blocks))
        for network in (model.encoder, model.decoder):
            actual = {block.scale for group in network.groups for block in group}
            assert actual == {scale}


def test_codes_are_the_largest_logits_row_by_row(shaken: Shaken) -> None:
    model = shaken(DalleTokenizer(CONFIG))
    codes, logits = model.encode(some_images()), model.logits(some_images())
    assert (codes.shape, codes.dtype) == ((2, 6), torch.int64)
    assert (logits.shape, logits.dtype) == ((2, 13, 2, 3), torch.float32)
    expected = [
        [logits[b, :, row, column].argmax().item() for row in range(2) for column in range(3)]
        for b in range(2)
    ]
    assert codes.tolist() == expected
    assert codes.unique().numel() > 1


def test_bytes_and_floats_are_the_same_images(shaken: Shaken) -> None:
    model = shaken(DalleTokenizer(CONFIG))
    pixels = torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8, generator=seeded())
    assert torch.equal(model.logits(pixels), model.logits(pixels / 255))


def test_pixels_are_mapped_to_the_margins_and_back(shaken: Shaken) -> None:
    model = shaken(DalleTokenizer(CONFIG))
    maps = model.encoder.stem(torch.full((1, 3, 16, 24), 0.1))
    assert torch.equal(model.encoder(maps), model.logits(torch.zeros(1, 3, 16, 24)))
    nn.init.zeros_(model.decoder.head.weight)
    # The first three channels are pixels; a sigmoid of 0 is grey, and both ends are cut off.
    model.decoder.head.bias.copy_(torch.tensor([0.0, 9.0, -9.0, 5.0, 6.0, 7.0]))
    painted = model.decode_images(torch.tensor([[0, 3, 12, 1, 1, 5]]))
    assert painted.shape == (1, 3, 16, 24)
    assert [channel.unique().tolist() for channel in painted[0]] == [[0.5], [1.0], [0.0]]


def test_codes_are_painted_as_one_hot_maps(shaken: Shaken) -> None:
    model = shaken(DalleTokenizer(CONFIG))
    codes = model.encode(some_images())
    one_hot = F.one_hot(codes, 13).float().transpose(1, 2).unflatten(2, (2, 3))  # (B, K, Gh, Gw)
    pixels = model.decoder(model.decoder.stem(one_hot))[:, :3].sigmoid()
    expected = ((pixels - 0.1) / 0.8).clamp(0, 1)
    torch.testing.assert_close(model.decode_images(codes), expected)


def test_nothing_depends_on_autocast_or_on_the_batch(shaken: Shaken) -> None:
    model = shaken(DalleTokenizer(CONFIG))
    images = some_images()
    codes = model.encode(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.logits(images), model.logits(images.double()))
        assert torch.equal(model.encode(images), codes)
        painted = model.decode_images(codes)
    assert painted.dtype == torch.float32
    assert torch.equal(painted, model.decode_images(codes))
    assert 0 <= painted.min() < painted.max() <= 1
    assert torch.equal(torch.cat([model.encode(images[:1]), model.encode(images[1:])]), codes)


def test_moved_by_eight_pixels_the_logits_move_by_one(shaken: Shaken) -> None:
    model = shaken(DalleTokenizer(CONFIG))
    image = torch.rand(1, 3, 120, 136, generator=seeded())
    up, down = model.logits(image[:, :, :-8]), model.logits(image[:, :, 8:])  # (1, 13, 14, 17)
    inner = slice(6, -6)  # beyond the reach of the zeros around the image
    torch.testing.assert_close(up[:, :, 7:-6, inner], down[:, :, 6:-7, inner])
    assert up[:, :, inner, inner].std((2, 3)).min() > 0.01


def test_images_of_other_sizes_are_taken(shaken: Shaken) -> None:
    model = shaken(DalleTokenizer(CONFIG))
    codes = model.encode(some_images(8, 40))
    assert codes.shape == (2, 5)
    assert model.decode_images(codes, grid=(1, 5)).shape == (2, 3, 8, 40)
    assert model.decode_images(codes[:, :4]).shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match=r"\(16, 20\) is not a multiple of patch size 8"):
        model.encode(some_images(16, 20))


def test_it_is_frozen_and_may_lack_a_decoder() -> None:
    model = DalleTokenizer(replace(CONFIG, decoder=False))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    codes = model.encode(some_images())
    with pytest.raises(ValueError, match=r"an encoder only.*decoder='decoder\.pkl'"):
        model.decode_images(codes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": (16, 20)}, r"\(16, 20\) is not a multiple of patch size 8"),
        ({"width": 6}, "width must be a multiple of 4, got 6"),
        ({"blocks_per_group": 0}, "must be 1 or more, got 13, 0 and 5"),
    ],
)
def test_impossible_sizes_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)
