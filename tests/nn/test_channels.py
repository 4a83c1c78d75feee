"""Models and targets of other channels than three."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from beit.nn.channels import as_rgb, chosen_channels
from beit.nn.dvae import DiscreteVAE, DiscreteVAEConfig, reconstruction_loss
from beit.nn.mim import MaskedImageModel, MaskedImageModelConfig
from beit.nn.patches import pixels_of
from beit.nn.targets import PixelTarget, TokenTarget
from beit.nn.vit import VisionTransformer, ViTConfig

MEAN, STD = (0.1, 0.3, 0.5, 0.2, 0.9), (0.2, 0.1, 0.3, 0.4, 0.5)
SIZES = {"image_size": (8, 12), "patch_size": 4, "width": 16, "depth": 2, "num_heads": 2}
FIVE = ViTConfig(**SIZES, in_channels=5, mean=MEAN, std=STD)
ORDER = torch.tensor([3, 0, 4, 1, 2])


def images(channels: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (2, channels, 8, 12), dtype=torch.uint8, generator=generator)


def permuted(model: VisionTransformer) -> VisionTransformer:
    """The same network for images whose channels are in `ORDER`."""
    means, stds = (tuple(values[place] for place in ORDER) for values in (MEAN, STD))
    other = VisionTransformer(replace(model.config, mean=means, std=stds)).eval()
    state = model.state_dict()
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"][:, ORDER]
    other.load_state_dict(state)
    return other


@torch.no_grad()
def test_the_order_of_channels_is_that_of_the_weights() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(FIVE).eval()
    expected = model(images()).patches
    torch.testing.assert_close(permuted(model)(images()[:, ORDER]).patches, expected)
    assert not torch.allclose(model(images()[:, ORDER]).patches, expected)


@torch.no_grad()
def test_each_channel_has_its_own_mean_and_std() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(FIVE).eval()
    plain = VisionTransformer(replace(FIVE, mean=None, std=None)).eval()
    plain.load_state_dict(model.state_dict())
    shares = images().double() / 255
    for channel in range(5):
        shares[:, channel] = (shares[:, channel] - MEAN[channel]) / STD[channel]
    torch.testing.assert_close(plain(shares.float()).patches, model(images()).patches)


def test_other_channels_are_refused() -> None:
    model = VisionTransformer(FIVE)
    with pytest.raises(ValueError, match=r"\(2, 3, 8, 12\), expected \(B, 5, H, W\); .*bands=1-5"):
        model(images(3))
    with pytest.raises(ValueError, match=r"expected \(B, 5, H, W\); channels are last"):
        model(images().permute(0, 2, 3, 1))
    with pytest.raises(ValueError, match=r"expected RGB \(B, 3, H, W\); .*bands=3,2,1"):
        pixels_of(images())
    with pytest.raises(ValueError, match="target_width is 48, but a patch has 80 pixel values"):
        head = {"predicts": "pixels", "num_codes": 0, "target_width": 48}
        MaskedImageModel(MaskedImageModelConfig(FIVE, early_layers=1, **head))


def test_a_discrete_vae_of_five_channels() -> None:
    torch.manual_seed(0)
    sizes = {"image_size": (8, 12), "num_codes": 7, "code_width": 6, "hidden_width": 5}
    config = DiscreteVAEConfig(**sizes, num_layers=2, in_channels=5, mean=MEAN, std=STD)
    vae = DiscreteVAE(config)
    output = vae(images(), torch.Generator().manual_seed(2))
    by_hand = images() / 255 - torch.tensor(MEAN).view(5, 1, 1)
    torch.testing.assert_close(output.pixels, by_hand / torch.tensor(STD).view(5, 1, 1))
    assert output.decoded.shape == images().shape
    reconstruction_loss(output).backward()
    assert all(
        bool(p.grad.abs().sum() > 0) for p in (vae.encoder[0][0].weight, vae.decoder[-1].bias)
    )
    assert vae.decode_images(vae.encode(images())).shape == images().shape
    assert DiscreteVAEConfig(in_channels=5).mean == (0.5,) * 5
    with pytest.raises(ValueError, match="in_channels is 1; expected 3 for RGB and for grey"):
        DiscreteVAEConfig(in_channels=1)
    with pytest.raises(ValueError, match="mean has 3 values for 5 channels"):
        DiscreteVAEConfig(in_channels=5, mean=(0.1, 0.2, 0.3))


@pytest.mark.parametrize("normalised", [True, False])
def test_pixels_of_five_channels_are_predicted_and_painted(normalised: bool) -> None:
    target = PixelTarget((8, 12), 4, MEAN, STD, normalised, channels=5)
    values = target.of(images())
    assert values.shape == (2, 6, 5 * 16)
    pixels = (images() / 255 - torch.tensor(MEAN).view(5, 1, 1)) / torch.tensor(STD).view(5, 1, 1)
    second = pixels[:, :, :4, 4:8].permute(0, 2, 3, 1).flatten(1)
    if normalised:
        second = (second - second.mean(1, True)) / (second.var(1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(values[:, 1], second)
    masked = torch.tensor([[0, 5], [2, 3]])
    painted = target.paint(images(), masked, target.of(images(), masked))
    torch.testing.assert_close(painted, images() / 255, atol=1e-5, rtol=0)


def test_a_target_sees_the_channels_that_are_named() -> None:
    assert torch.equal(chosen_channels(images(), (3, 1, 5)), images()[:, [2, 0, 4]])
    assert torch.equal(chosen_channels(images(), (4,)), images()[:, [3, 3, 3]])
    assert torch.equal(chosen_channels(images(), ()), images())
    sizes = {"image_size": (8, 12), "num_codes": 7, "code_width": 6, "hidden_width": 5}
    vae = DiscreteVAE(DiscreteVAEConfig(**sizes, num_layers=2))
    codes = TokenTarget(vae, (2, 3), (3, 1, 5)).of(images())
    assert torch.equal(codes, vae.encode(images()[:, [2, 0, 4]]))


def test_the_first_three_channels_are_shown() -> None:
    assert as_rgb(images(3)) is not None
    assert torch.equal(as_rgb(images()), images()[:, :3])
    assert torch.equal(as_rgb(images(2)[0]), images(2)[0][[0, 0, 0]])
