from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from beit.nn.quantizer import scalar_codes, unit
from beit.nn.tokenizer import VQKD, VQKDConfig, tokenizer_vit

Shaken = Callable[[nn.Module], nn.Module]
CONFIG = VQKDConfig(
    encoder=replace(tokenizer_vit((6, 10), 2), width=12, depth=2, num_heads=3),  # grid 3 x 5
    decoder_depth=1,
    num_codes=11,
    code_width=4,
    teacher_width=7,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_images() -> Tensor:
    return torch.rand(2, 3, 6, 10, generator=seeded())


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_published_sizes() -> None:
    with torch.device("meta"):
        vqkd = VQKD(VQKDConfig())
        dino = VQKD(VQKDConfig(decoder_depth=1, teacher_width=768))
    assert num_parameters(vqkd) == 108_829_216
    assert num_parameters(vqkd.encoder) == 85_789_440
    assert num_parameters(vqkd.encode_task) == 615_200
    assert num_parameters(vqkd.decoder) == 21_440_256
    assert num_parameters(dino.decoder) == 7_266_048
    assert num_parameters(dino.decode_task) == 1_181_184
    assert (vqkd.vocab_size, vqkd.grid) == (8192, (14, 14))


@torch.no_grad()
def test_a_tokenizer_in_half_precision_takes_the_same_images(shaken: Shaken) -> None:
    vqkd = shaken(VQKD(CONFIG))
    codes = vqkd.encode(some_images())
    half = vqkd.half()
    assert (half.encode(some_images()) == codes).float().mean() > 0.8  # near ties aside
    assert half.decode(codes).dtype == torch.float16


def test_a_tokenizer_takes_pixels_from_minus_one_to_one() -> None:
    config = tokenizer_vit((6, 10), 2)
    assert config.mean == config.std == (0.5, 0.5, 0.5)
    assert (config.relative_bias, config.absolute_positions) == ("none", True)
    assert (config.layer_scale, config.drop_path, config.final_norm) == (None, 0.0, True)
    assert CONFIG.decoder.mean is None  # codes are not normalised again


def test_initial_weights_are_not_truncated() -> None:
    vqkd = VQKD(replace(CONFIG, encoder=replace(CONFIG.encoder, width=192)))
    for linear in (vqkd.encode_task[0], vqkd.decode_task[0], vqkd.encoder.blocks[0].mlp.fc1):
        assert abs(linear.weight.std() / 0.02 - 1) < 0.03
        assert linear.weight.abs().max() > 0.06
        assert not linear.bias.any()


@torch.no_grad()
def test_codes_and_features_of_the_three_ways_agree(shaken: Shaken) -> None:
    vqkd = shaken(VQKD(CONFIG))
    images = some_images()
    output = vqkd(images)
    raw = vqkd.encode_task(vqkd.encoder(images).patches)
    torch.testing.assert_close(output.vectors, raw / raw.norm(dim=-1, keepdim=True))
    cosines = output.vectors @ vqkd.quantizer.codebook.T
    assert output.codes.shape == (2, 15) and output.codes.dtype == torch.int64
    assert len(output.codes.unique()) > 2
    assert torch.equal(output.codes, cosines.argmax(dim=-1))
    assert torch.equal(vqkd.encode(images), output.codes)
    assert output.features.shape == (2, 15, 7)
    torch.testing.assert_close(vqkd.decode(output.codes), output.features)
    squares = (output.vectors - vqkd.quantizer.codebook[output.codes]) ** 2
    torch.testing.assert_close(output.commitment, squares.sum() / (2 * 15 * 4))


@torch.no_grad()
def test_the_decoder_sees_codes_where_their_patches_were() -> None:
    vqkd, inputs = VQKD(CONFIG), []
    vqkd.decoder.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    codes = torch.randint(11, (2, 15), generator=seeded())
    vqkd.decode(codes)
    assert inputs[0].shape == (2, 4, 3, 5)
    for b in range(2):
        for y in range(3):
            for x in range(5):
                code = vqkd.quantizer.codebook[codes[b, 5 * y + x]]
                assert torch.equal(inputs[0][b, :, y, x], code)


def test_gradients_pass_the_codebook_straight_through(shaken: Shaken) -> None:
    vqkd = shaken(VQKD(CONFIG))
    output = vqkd(some_images())
    pull = torch.randn(2, 15, 7, generator=seeded(1))
    actual = torch.autograd.grad((output.features * pull).sum(), output.vectors)[0]
    decoder_input = vqkd.quantizer.codebook[output.codes].requires_grad_()
    loss = (vqkd.rebuild(decoder_input) * pull).sum()
    expected = torch.autograd.grad(loss, decoder_input)[0]
    assert expected.abs().max() > 1e-3
    # The decoder's input is the code up to the rounding of vectors + (code - vectors).
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_commitment_pulls_vectors_to_their_codes_and_not_back(shaken: Shaken) -> None:
    vqkd = shaken(VQKD(CONFIG))
    output = vqkd(some_images())
    actual = torch.autograd.grad(output.commitment, output.vectors)[0]
    codes = vqkd.quantizer.codebook[output.codes]
    torch.testing.assert_close(actual, 2 / (2 * 15 * 4) * (output.vectors - codes).detach())
    assert not vqkd.quantizer.codebook.requires_grad


def test_forward_changes_no_state_even_in_training(shaken: Shaken) -> None:
    vqkd = shaken(VQKD(CONFIG)).train()
    before = {name: tensor.clone() for name, tensor in vqkd.state_dict().items()}
    vqkd(some_images()).features.sum().backward()
    vqkd.encode(some_images())
    for name, tensor in vqkd.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@torch.no_grad()
def test_vectors_are_float32_under_autocast(shaken: Shaken) -> None:
    vqkd = shaken(VQKD(CONFIG))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        patches = vqkd.encoder(some_images()).patches
        vectors, output = vqkd.embed(some_images()), vqkd(some_images())
    expected = vqkd.encode_task(patches.float())  # from there on as without autocast
    assert torch.equal(vectors, expected)
    assert torch.equal(output.vectors, unit(expected))
    assert torch.equal(output.codes, vqkd.quantizer.nearest(expected))


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="images are 10 x 6, the model takes 6 x 10"):
        VQKD(CONFIG).encode(torch.rand(2, 3, 10, 6))


def test_a_teacher_width_of_0_is_refused() -> None:
    with pytest.raises(ValueError, match="teacher_width must be 1 or more, got 0"):
        VQKD(replace(CONFIG, teacher_width=0))


# ── variants for ablations ──────────────────────────────────────────────────────────────────────

EUCLIDEAN = replace(CONFIG, l2_normalised=False)
SCALARS = replace(EUCLIDEAN, num_codes=24, code_width=3, levels=(4, 3, 2))


@pytest.mark.parametrize(
    ("depth", "num_codes", "code_width"), [(1, 2, 8), (3, 512, 64), (6, 11, 256)]
)
@torch.no_grad()
def test_decoders_and_codebooks_of_other_sizes(
    depth: int, num_codes: int, code_width: int, shaken: Shaken
) -> None:
    sizes = {"decoder_depth": depth, "num_codes": num_codes, "code_width": code_width}
    vqkd = shaken(VQKD(replace(CONFIG, **sizes)))
    output = vqkd(some_images())
    assert len(vqkd.decoder.blocks) == depth
    assert vqkd.quantizer.codebook.shape == (num_codes, code_width)
    assert output.vectors.shape == (2, 15, code_width)
    assert output.features.shape == (2, 15, 7)
    assert output.codes.max() < num_codes == vqkd.vocab_size


def test_published_sizes_with_a_decoder_of_six_blocks() -> None:
    with torch.device("meta"):
        three, six = VQKD(VQKDConfig()), VQKD(VQKDConfig(decoder_depth=6))
    block = num_parameters(three.decoder.blocks[0])
    assert num_parameters(six) == num_parameters(three) + 3 * block


@torch.no_grad()
def test_without_l2_vectors_keep_their_length(shaken: Shaken) -> None:
    vqkd = shaken(VQKD(EUCLIDEAN))
    vqkd.quantizer.codebook.normal_(generator=seeded())
    images = some_images()
    output, raw = vqkd(images), vqkd.embed(images)
    assert torch.equal(output.vectors, raw)
    distances = torch.cdist(
        raw, vqkd.quantizer.codebook, compute_mode="donot_use_mm_for_euclid_dist"
    )
    assert len(output.codes.unique()) > 2
    assert torch.equal(output.codes, distances.argmin(dim=-1))
    assert torch.equal(vqkd.encode(images), output.codes)
    torch.testing.assert_close(vqkd.decode(output.codes), output.features)
    torch.testing.assert_close(output.commitment, distances.amin(dim=-1).square().mean() / 4)


@pytest.mark.parametrize("config", [CONFIG, EUCLIDEAN])
def test_gradients_of_the_codebook_are_those_of_the_formula(
    config: VQKDConfig, shaken: Shaken
) -> None:
    vqkd = shaken(VQKD(config))
    vqkd.quantizer.codebook.normal_(generator=seeded())
    vqkd.quantizer.codebook.copy_(vqkd.quantizer.project(vqkd.quantizer.codebook))
    codebook = vqkd.quantizer.use_gradients()
    output = vqkd(some_images())
    ((2 * output.commitment + 3 * output.attraction) + output.features.sum()).backward()
    with torch.no_grad():  # of 3 * mean over elements of |sg(z) - l2(e)|^2, a vector at a time
        expected = torch.zeros_like(codebook)
        for z, code in zip(output.vectors.flatten(0, 1), output.codes.flatten(), strict=True):
            e = codebook[code]
            pull = 3 * 2 * (e - z) / (2 * 15 * 4)
            expected[code] += pull - (pull @ e) * e if config.l2_normalised else pull
    assert codebook.grad is not None and expected.abs().max() > 1e-4
    # Neither the commitment nor the decoder moves the codes: the first holds them fixed, the
    # second goes straight through.
    torch.testing.assert_close(codebook.grad, expected)


def test_the_codebook_term_does_not_move_vectors(shaken: Shaken) -> None:
    vqkd = shaken(VQKD(CONFIG))
    vqkd.quantizer.use_gradients()
    output = vqkd(some_images())
    torch.testing.assert_close(output.attraction, output.commitment)
    assert torch.autograd.grad(output.attraction, output.vectors, allow_unused=True) == (None,)


def test_gradients_of_the_paper_are_c_times_those_of_the_mean(shaken: Shaken) -> None:
    vqkd = shaken(VQKD(CONFIG))
    output = vqkd(some_images())
    codes = vqkd.quantizer.codebook[output.codes]
    paper = (output.vectors - codes).square().sum(dim=-1).mean()  # Eq. 2, a mean over patches
    torch.testing.assert_close(paper, CONFIG.code_width * output.commitment)


def test_scalar_codes_in_a_tokenizer(shaken: Shaken) -> None:
    vqkd = shaken(VQKD(SCALARS))
    images = some_images()
    output = vqkd(images)
    assert output.vectors.abs().max() <= 1.001
    assert torch.equal(vqkd.quantizer.codebook, scalar_codes(SCALARS.levels))
    assert torch.equal(vqkd.encode(images), output.codes)
    assert 1 < len(output.codes.unique()) <= 24
    torch.testing.assert_close(vqkd.decode(output.codes), output.features)
    output.features.sum().backward()  # through rounding and squashing, down to the encoder
    assert vqkd.encoder.patch_embed.proj.weight.grad.abs().max() > 0


def test_levels_that_contradict_the_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="num_codes is 11 and code_width 4; give those numbers"):
        replace(EUCLIDEAN, levels=(4, 3, 2))
    with pytest.raises(ValueError, match="set l2_normalised to false"):
        replace(SCALARS, l2_normalised=True)
