"""A pretraining step of other libraries of the same size, in turn with ours.

They are other methods: transformers' `BeitForMaskedImageModeling` is BEiT v1 (one prediction, no
aggregation; it gets its codes from our tokenizer), lightly's is a masked autoencoder, whose encoder
sees a quarter of the patches. So the figures say what a user of each gets, not who computes the
same thing faster. A library that is not installed is named and left out.

    python benchmarks/peers.py --size B --image-size 224 --batch 8
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import backbone
import record

SEED = 0


def main() -> None:
    parser = backbone.sizes_parser(__doc__)
    parser.add_argument("--precision", choices=["32", "bf16"], default="32")
    options = parser.parse_args()
    result = measure(options)
    record.print_table(
        result["rows"], ["way", "seconds", "cpu_s", "images_per_s", "ours_is_faster"]
    )
    for name in result["absent"]:
        print(f"{name} is not installed: left out")
    provenance = record.provenance(options.device, [SEED])
    record.write_results(
        f"peers-{options.device}", provenance | {"settings": vars(options)} | result
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time a step of ours and of the libraries that are installed."""
    import torch
    import trainings

    precision = {"32": "32-true", "bf16": "bf16-mixed"}[options.precision]
    device = trainings.device_config(options.device, precision)
    autocast = torch.autocast(options.device, torch.bfloat16, enabled=options.precision == "bf16")
    steps = {"transformers": transformers_step, "lightly": lightly_step}
    there = [name for name in steps if record.installed(name)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = (Path(folder), options.size, options.image_size, options.batch, device)
        with trainings.pretraining(*arguments) as ours:
            ways: dict[str, Callable[[], object]] = {"ours": ours.advance}
            for name in there:
                ways[name] = steps[name](options, ours.batch.images, Path(folder), autocast)
            timings = record.in_turn(ways, options.rounds, device=options.device)
    versions = {name: record.installed(name) for name in there}
    absent = [name for name in steps if name not in there]
    rows = record.timing_rows(timings, options.batch)
    return {"rows": rows, "versions": versions, "absent": absent}


def optimised(model: Any, loss: Callable[[], Any]) -> Callable[[], None]:
    """Return a step of AdamW, at PyTorch's own choice of kernels, with clipping."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)

    def step() -> None:
        loss().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 3.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def transformers_step(
    options: argparse.Namespace, images: Any, folder: Path, autocast: Any
) -> Callable[[], None]:
    """Return a step of BEiT v1 on the codes of our tokenizer."""
    import torch
    import trainings
    from transformers import BeitConfig, BeitForMaskedImageModeling

    from beit.nn.masking import block_masks
    from beit.weights.open import load_tokenizer

    torch.manual_seed(SEED)
    config = BeitConfig(
        **backbone.transformers_sizes(options.size, options.image_size),
        vocab_size=trainings.NUM_CODES,
        use_mask_token=True,
        use_shared_relative_position_bias=True,
    )
    model = BeitForMaskedImageModeling(config).to(options.device).train()
    vqkd = load_tokenizer(folder / "tokenizer.safetensors").to(options.device)
    N, generator = vqkd.grid[0] * vqkd.grid[1], torch.Generator().manual_seed(SEED)
    count = round(trainings.MASKED_SHARE * N)
    masked = block_masks(options.batch, vqkd.grid, count, generator).to(options.device)
    hidden = torch.zeros(options.batch, N, dtype=torch.bool, device=options.device)
    hidden.scatter_(1, masked, True)
    pixels = images.float() / 127.5 - 1

    def loss() -> Any:
        with torch.no_grad(), autocast:
            codes = vqkd.encode(images)  # (B, N)
        with autocast:
            return model(pixels, bool_masked_pos=hidden, labels=codes[hidden]).loss

    return optimised(model, loss)


def lightly_step(
    options: argparse.Namespace, images: Any, folder: Path, autocast: Any
) -> Callable[[], None]:
    """Return a step of a masked autoencoder, three quarters hidden, decoder of 8 blocks of 512."""
    import timm
    import torch
    from lightly.models import utils
    from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM

    from beit.nn.vit import SIZES

    width, depth, heads = SIZES[options.size]
    torch.manual_seed(SEED)
    vit = timm.create_model(
        "vit_base_patch16_224",
        img_size=options.image_size,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        num_classes=0,
    )
    encoder = MaskedVisionTransformerTIMM(vit=vit)
    decoder = MAEDecoderTIMM(
        num_patches=vit.patch_embed.num_patches,
        patch_size=16,
        embed_dim=width,
        decoder_embed_dim=512,
        decoder_depth=8,
        decoder_num_heads=16,
    )
    model = torch.nn.ModuleList([encoder, decoder]).to(options.device).train()
    pixels, length = images.float() / 127.5 - 1, encoder.sequence_length

    def loss() -> Any:
        size = (len(pixels), length)
        kept, masked = utils.random_token_mask(size=size, mask_ratio=0.75, device=pixels.device)
        with autocast:
            tokens = decoder.embed(encoder.encode(images=pixels, idx_keep=kept))
            whole = utils.repeat_token(decoder.mask_token, size).to(tokens.dtype)
            decoded = decoder.decode(utils.set_at_index(whole, kept, tokens))
            predicted = decoder.predict(utils.get_at_index(decoded, masked))
        targets = utils.get_at_index(utils.patchify(pixels, 16), masked - 1)
        return torch.nn.functional.mse_loss(predicted.float(), targets)

    return optimised(model, loss)


if __name__ == "__main__":
    main()
