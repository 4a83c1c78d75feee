"""Start a tokenizer from another model's weights: VQ-KD's encoder, codebook and decoder."""

from torch import nn

from beit.nn.dvae import DiscreteVAE
from beit.nn.tokenizer import VQKD
from beit.weights.open import load, required_backbone
from beit.weights.start import (
    CODES,
    Note,
    account,
    carry_network,
    check_fit,
    load_init,
    misfits,
    normalised,
)
from beit.wording import an


def start_from(origin: str, vqkd: VQKD) -> str:
    """Copy what fits of the model in `origin` to a new tokenizer. Returns: the account of it.

    A codebook that is copied counts as initialised, so that training does not start another.

    Raises:
        ValueError: its backbone does not fit the encoder.
    """
    vit = vqkd.config.encoder
    source = load_init(origin, vit.image_size, vit.num_heads)
    backbone = required_backbone(source, origin)
    check_fit(backbone.config, vit, origin, "model.encoder")
    notes = carry_network(backbone, vqkd.encoder, "encoder")
    if isinstance(source, VQKD):
        notes += [*carry_codebook(source, vqkd), *carry_decoder(source, vqkd)]
    else:
        notes.append(Note("new", "codebook, decoder (the source has none)"))
    return account(origin, source, notes)


def carry_codebook(source: VQKD, vqkd: VQKD) -> list[Note]:
    """Copy the codebook, and the layers that encode its vectors, if there are as many codes."""
    theirs, ours = (
        {name: getattr(model.config, name) for name in CODES} for model in (source, vqkd)
    )
    what = f"codebook of {vqkd.vocab_size} codes of {vqkd.config.code_width} channels"
    if different := {name: theirs[name] for name in CODES if theirs[name] != ours[name]}:
        others = ", ".join(f"{name} {value}" for name, value in different.items())
        return [Note("new", f"{what} (the source's has {others})")]
    if not source.quantizer.initialised:
        return [Note("new", f"{what} (the source's was never initialised)")]
    vqkd.encode_task.load_state_dict(source.encode_task.state_dict())
    vqkd.quantizer.load_state_dict(source.quantizer.state_dict())
    return [Note("taken", what)]


def carry_decoder(source: VQKD, vqkd: VQKD) -> list[Note]:
    """Copy the decoder if it fits, and its output layer if the teacher is as wide."""
    theirs, ours = (model.config.decoder for model in (source, vqkd))
    if different := misfits(theirs, ours):
        others = ", ".join(f"{name} {getattr(theirs, name)}" for name in different)
        others = others.replace("in_channels", "code_width")
        return [Note("new", f"decoder (the source's has {others})")]
    notes = carry_network(source.decoder, vqkd.decoder, "decoder")
    old, new = source.decode_task, vqkd.decode_task
    assert isinstance(old[0], nn.Linear)
    new[0].load_state_dict(old[0].state_dict())
    widths = [model.config.teacher_width for model in (source, vqkd)]
    if widths[0] != widths[1]:
        text = f"output layer for {widths[1]} channels (the source's teacher has {widths[0]})"
        return [*notes, Note("new", text)]
    new[2].load_state_dict(old[2].state_dict())
    return [*notes, Note("taken", f"output layer for {widths[1]} channels of a teacher")]


def start_dvae(origin: str, vae: DiscreteVAE) -> str:
    """Copy the weights of another discrete VAE, which fits whole or not. Returns: the account."""
    source = load(origin)
    if not isinstance(source, DiscreteVAE):
        raise ValueError(f"{origin} holds {an(type(source).__name__)}; expected a discrete VAE")
    theirs, ours = source.config, vae.config
    sizes = ("num_codes", "code_width", "num_layers", "hidden_width", "in_channels")
    if different := [name for name in sizes if getattr(theirs, name) != getattr(ours, name)]:
        options = " ".join(f"--model.{name} {getattr(theirs, name)}" for name in different)
        raise ValueError(f"{origin} has other sizes; to start from it give {options}")
    vae.load_state_dict(source.state_dict())
    notes = [Note("taken", f"encoder, codebook of {vae.vocab_size} codes, decoder")]
    return account(origin, source, notes + normalised(theirs, ours))
