import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beit.nn.dvae import (
    DiscreteVAE,
    DiscreteVAEConfig,
    code_map,
    gumbel_noise,
    gumbel_softmax,
    reconstruction_loss,
)
from beit.nn.patches import unchecked
from beit.nn.tokenizer import Tokenizer

Shaken = Callable[[nn.Module], nn.Module]
CONFIG = DiscreteVAEConfig(  # 4 pixels a code, grid 3 x 5
    image_size=(12, 20), num_codes=11, code_width=6, num_layers=2, hidden_width=5
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_images(height: int = 12, width: int = 20) -> Tensor:
    return torch.rand(2, 3, height, width, generator=seeded())


def test_the_defaults_are_those_of_beit_v1() -> None:
    config = DiscreteVAEConfig()
    assert (config.grid, config.patch_size) == ((14, 14), 8)
    assert (config.num_codes, config.code_width, config.num_layers) == (8192, 512, 3)
    assert config.hidden_width == 256
    assert config.mean == config.std == (0.5, 0.5, 0.5)
    model = DiscreteVAE(CONFIG)
    assert isinstance(model, Tokenizer)
    assert (model.vocab_size, model.grid, model.image_size) == (11, (3, 5), (12, 20))


def test_codes_are_the_largest_logits_row_by_row(shaken: Shaken) -> None:
    model = shaken(DiscreteVAE(CONFIG))
    codes = model.encode(some_images())
    logits = model.logits(some_images())
    assert (codes.shape, codes.dtype) == ((2, 15), torch.int64)
    assert logits.shape == (2, 11, 3, 5)
    for b in range(2):
        for row in range(3):
            for column in range(5):
                assert codes[b, row * 5 + column] == logits[b, :, row, column].argmax()
    assert codes.unique().numel() > 1


def test_bytes_and_floats_are_the_same_images(shaken: Shaken) -> None:
    model = shaken(DiscreteVAE(CONFIG))
    pixels = torch.randint(0, 256, (2, 3, 12, 20), dtype=torch.uint8, generator=seeded())
    assert torch.equal(model.encode(pixels), model.encode(pixels / 255))


def test_images_are_normalised_inside(shaken: Shaken) -> None:
    model = shaken(DiscreteVAE(replace(CONFIG, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))))
    bare = DiscreteVAE(replace(CONFIG, mean=None, std=None))
    bare.load_state_dict(model.state_dict())
    mean, std = torch.tensor([[0.1, 0.2, 0.3], [0.5, 0.6, 0.7]]).view(2, 3, 1, 1)
    images = some_images()
    with unchecked():
        expected = bare.logits((images - mean) / std)
    torch.testing.assert_close(model.logits(images), expected)
    codes = model.encode(images)
    painted = model.decoder(model.codebook(codes).transpose(1, 2).unflatten(2, (3, 5)))
    assert torch.equal(model.decode_images(codes), (painted * std + mean).clamp(0, 1))


def test_painted_images_are_images(shaken: Shaken) -> None:
    model = shaken(DiscreteVAE(CONFIG))
    model.decoder[-1].weight.data *= 50  # far beyond both ends
    with torch.autocast("cpu", dtype=torch.bfloat16):
        painted = model.decode_images(model.encode(some_images()))
    assert (painted.shape, painted.dtype) == ((2, 3, 12, 20), torch.float32)
    assert (painted.min(), painted.max()) == (0, 1)


def test_codes_do_not_depend_on_autocast_or_on_the_batch(shaken: Shaken) -> None:
    model = shaken(DiscreteVAE(CONFIG))
    images = some_images()
    codes = model.encode(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.logits(images).dtype == torch.bfloat16  # it does reach the model
        assert torch.equal(model.encode(images), codes)
    assert torch.equal(torch.cat([model.encode(images[:1]), model.encode(images[1:])]), codes)


def test_moved_by_a_patch_the_logits_move_by_one(shaken: Shaken) -> None:
    model = shaken(DiscreteVAE(CONFIG))
    image = torch.rand(1, 3, 64, 76, generator=seeded())
    left, right = model.logits(image[..., :-4]), model.logits(image[..., 4:])  # (1, 11, 16, 18)
    inner = slice(5, -5)  # beyond the reach of the zeros around the image
    torch.testing.assert_close(left[:, :, inner, 6:-5], right[:, :, inner, 5:-6])
    assert left[:, :, inner, inner].std((2, 3)).min() > 0.01


def test_images_of_other_sizes_are_taken(shaken: Shaken) -> None:
    model = shaken(DiscreteVAE(CONFIG))
    codes = model.encode(some_images(8, 28))
    assert codes.shape == (2, 14)
    assert model.decode_images(codes, grid=(2, 7)).shape == (2, 3, 8, 28)
    with pytest.raises(ValueError, match=r"\(10, 12\) is not a multiple of patch size 4"):
        model.encode(some_images(10, 12))


def test_code_maps() -> None:
    codes = torch.arange(30).view(2, 15)
    assert code_map(codes, (3, 5), None)[1].tolist() == [
        [15, 16, 17, 18, 19],
        [20, 21, 22, 23, 24],
        [25, 26, 27, 28, 29],
    ]
    assert code_map(codes, (3, 5), (5, 3)).shape == (2, 5, 3)
    assert code_map(codes[:, :4], (3, 5), None).tolist() == [
        [[0, 1], [2, 3]],
        [[15, 16], [17, 18]],
    ]
    assert code_map(codes[:, :4], (1, 4), None).shape == (2, 1, 4)  # its own grid before a square
    with pytest.raises(ValueError, match=r"14 codes do not fill a grid of 3 x 5; give grid="):
        code_map(codes[:, :14], (3, 5), None)
    with pytest.raises(ValueError, match=r"15 codes do not fill a grid of 4 x 4"):
        code_map(codes, (3, 5), (4, 4))


def test_training_output_by_hand(shaken: Shaken) -> None:
    model = shaken(DiscreteVAE(CONFIG)).train()
    noise = gumbel_noise((2, 11, 3, 5), seeded(3))
    output = model(some_images(), noise=noise, temperature=0.7)
    logits = model.logits(some_images())
    torch.testing.assert_close(output.logits, logits)
    torch.testing.assert_close(output.pixels, some_images() * 2 - 1)
    assert torch.equal(output.relaxed, gumbel_softmax(output.logits, noise, 0.7))
    vectors = torch.zeros(2, 6, 3, 5)
    for code in range(11):
        vectors += output.relaxed[:, code, None] * model.codebook.weight[code].view(1, 6, 1, 1)
    torch.testing.assert_close(output.decoded, model.decode(vectors))
    kl = 0.0
    for probabilities in logits.softmax(1).movedim(1, -1).reshape(-1, 11).tolist():
        kl += sum(p * math.log(p * 11) for p in probabilities)
    assert output.kl.item() == pytest.approx(kl, rel=1e-5)
    squared = (output.decoded - output.pixels).square().mean()
    torch.testing.assert_close(reconstruction_loss(output), squared)
    smooth = reconstruction_loss(output, smooth=True)
    torch.testing.assert_close(smooth, F.smooth_l1_loss(output.decoded, output.pixels))
    assert smooth != squared


def test_every_parameter_learns(shaken: Shaken) -> None:
    model = shaken(DiscreteVAE(CONFIG)).train()
    noise = gumbel_noise((2, 11, 3, 5), seeded())
    for hard in (False, True):
        model.zero_grad()
        output = model(some_images(), noise=noise, hard=hard)
        (reconstruction_loss(output) + 0.1 * output.kl).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_noise_is_repeated_by_its_generator_alone(shaken: Shaken) -> None:
    random_state = torch.random.get_rng_state()
    one, same, other = (gumbel_noise((2, 11, 3, 5), seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    model = shaken(DiscreteVAE(CONFIG))
    assert torch.equal(
        model(some_images(), seeded(1)).relaxed, model(some_images(), noise=one).relaxed
    )


def test_training_under_autocast_keeps_choices_in_float32(shaken: Shaken) -> None:
    model = shaken(DiscreteVAE(CONFIG)).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(some_images())
    assert output.decoded.dtype == torch.bfloat16
    for tensor in (output.logits, output.relaxed, output.pixels, output.kl):
        assert tensor.dtype == torch.float32
    assert reconstruction_loss(output).dtype == torch.float32


def test_gumbel_softmax_chooses_as_often_as_softmax_says() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = probabilities.log().view(1, 4, 1).expand(1, 4, 20_000)
    noise = gumbel_noise(logits.shape, seeded())
    chosen = gumbel_softmax(logits, noise, 0.9, hard=True)
    # 5 standard errors of a share among 20,000
    assert ((chosen.mean(2)[0] - probabilities).abs() < 5 * 0.5 / 20_000**0.5).all()
    assert torch.equal(chosen.round(), chosen.round().clamp(0, 1))
    torch.testing.assert_close(chosen, chosen.round())
    soft = gumbel_softmax(logits, noise, 0.9)
    assert torch.equal(soft.argmax(1), chosen.argmax(1))
    torch.testing.assert_close(soft.sum(1), torch.ones(1, 20_000))
    assert soft.max(1).values.mean() < 0.9
    cold = gumbel_softmax(logits, noise, 0.01)
    assert cold.max(1).values.mean() > 0.97
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        gumbel_softmax(logits, noise, 0)
    with pytest.raises(ValueError, match=r"noise is \(1, 3, 2\), expected \(1, 4, 20000\)"):
        gumbel_softmax(logits, noise[:, :3, :2], 0.9)


def test_the_loss_by_hand_with_fixed_noise(shaken: Shaken) -> None:
    """Gumbel-softmax, decoder, distance and divergence, from the logits on, place by place."""
    model = shaken(DiscreteVAE(CONFIG)).train()
    noise = gumbel_noise((2, 11, 3, 5), seeded(4))
    for hard in (False, True):
        logits = model.logits(some_images()).detach().requires_grad_()
        vectors, divergence = torch.zeros(2, 6, 3, 5), torch.zeros(())
        for b in range(2):
            for y in range(3):
                for x in range(5):
                    scores = [(logits[b, k, y, x] + noise[b, k, y, x]) / 0.5 for k in range(11)]
                    total = sum(score.exp() for score in scores)
                    weights = torch.stack([score.exp() / total for score in scores])
                    if hard:
                        weights = weights - weights.detach() + F.one_hot(weights.argmax(), 11)
                    for k in range(11):
                        vectors[b, :, y, x] += weights[k] * model.codebook.weight[k]
                    share = logits[b, :, y, x].exp() / logits[b, :, y, x].exp().sum()
                    divergence = divergence + (share * (share * 11).log()).sum()
        errors = model.decode(vectors) - (some_images() * 2 - 1)
        small = errors.abs() < 1
        smooth = torch.where(small, errors.square() / 2, errors.abs() - 0.5).mean()
        loss = smooth + 0.01 * divergence
        (by_hand,) = torch.autograd.grad(loss, logits)

        output = model(some_images(), noise=noise, temperature=0.5, hard=hard)
        ours = reconstruction_loss(output, smooth=True) + 0.01 * output.kl
        torch.testing.assert_close(ours, loss)
        (gradient,) = torch.autograd.grad(ours, output.logits, retain_graph=True)
        torch.testing.assert_close(gradient, by_hand)
        first = model.encoder[0][0].weight
        (reached,) = torch.autograd.grad(ours, first)
        assert reached.abs().sum() > 0


def test_a_uniform_encoder_has_no_divergence() -> None:
    model = DiscreteVAE(CONFIG)
    nn.init.zeros_(model.encoder[-1].weight)
    nn.init.constant_(model.encoder[-1].bias, 3.0)
    assert model(some_images()).kl.abs() < 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": (12, 18)}, r"\(12, 18\) is not a multiple of patch size 4"),
        ({"num_layers": 0}, r"num_layers must be in 1\.\.16, got 0"),
        ({"num_layers": 10**9}, r"num_layers must be in 1\.\.16, got 1000000000"),
        ({"num_codes": 0}, "must be 1 or more, got 0, 6 and 5"),
        ({"mean": None}, "mean and std go together"),
    ],
)
def test_impossible_sizes_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)
