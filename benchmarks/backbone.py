"""Forward and backward of the backbone against timm's and transformers' BEiT of the same size.

All have a relative position bias per block and random weights; the loss is a weighted sum of all
tokens. In turn, in one process.

    python benchmarks/backbone.py --size B --image-size 224 --batch 8 --precision 32 bf16
"""

import argparse
from collections.abc import Callable
from typing import Any

import record

SEED = 0


def main() -> None:
    parser = sizes_parser(__doc__)
    parser.add_argument("--precision", choices=["32", "bf16"], nargs="+", default=["32", "bf16"])
    parser.add_argument("--compile", action="store_true", help="measure ours compiled as well")
    options = parser.parse_args()
    measured = {precision: measure(options, precision) for precision in options.precision}
    rows = [{"precision": precision} | row for precision, rows in measured.items() for row in rows]
    record.print_table(
        rows, ["precision", "way", "seconds", "cpu_s", "images_per_s", "ours_is_faster"]
    )
    result = record.provenance(options.device, [SEED]) | {"settings": vars(options), "rows": rows}
    record.write_results(f"backbone-{options.device}", result)


def sizes_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser of the sizes, the device and the rounds of a comparison."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--size", choices=["Ti", "S", "B", "L", "H"], default="B")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    return parser


def measure(options: argparse.Namespace, precision: str) -> list[dict[str, Any]]:
    """Time all libraries that are installed, at one precision."""
    import torch

    device, side = options.device, options.image_size
    generator = torch.Generator().manual_seed(SEED)
    images = torch.rand(options.batch, 3, side, side, generator=generator).to(device)
    autocast = torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")

    def step(model: Any, tokens: Callable[[Any], Any]) -> Callable[[], None]:
        weights = torch.randn(1, 1, width_of(options.size), device=device)

        def run() -> None:
            with autocast:
                output = tokens(images)
            (output.float() * weights).sum().backward()
            model.zero_grad()

        return run

    models = libraries(options.size, side, device)
    ways = {name: step(model, tokens) for name, (model, tokens) in models.items()}
    if options.compile:
        model, _ = models["ours"]
        compiled = torch.compile(model)
        ways["ours, compiled"] = step(model, lambda images: tokens_of(compiled(images)))
    timings = record.in_turn(ways, options.rounds, device=device)
    return record.timing_rows(timings, options.batch)


def width_of(size: str) -> int:
    from beit.nn.vit import SIZES

    return SIZES[size][0]


def tokens_of(features: Any) -> Any:
    """Return all tokens (B, 1+N, D) of our backbone's output."""
    import torch

    return torch.cat([features.cls[:, None], features.patches], dim=1)


def libraries(
    size: str, image_size: int, device: str
) -> dict[str, tuple[Any, Callable[[Any], Any]]]:
    """Build ours, timm's and, if installed, transformers' BEiT. Returns: model, and its tokens.

    The models must have equally many weights; timm and transformers have a norm or [CLS] more or
    less.
    """
    import timm
    import torch

    from beit.nn.vit import SIZES, VisionTransformer, vit_config

    width, depth, heads = SIZES[size]
    torch.manual_seed(SEED)
    side = (image_size, image_size)
    ours = VisionTransformer(vit_config(size, image_size=side, relative_bias="per_block"))
    theirs = timm.create_model(
        "beitv2_base_patch16_224",
        num_classes=0,
        img_size=image_size,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
    )
    models: dict[str, tuple[Any, Callable[[Any], Any]]] = {
        "ours": (ours, lambda images: tokens_of(ours(images))),
        "timm": (theirs, theirs.forward_features),
    }
    if record.installed("transformers"):
        from transformers import BeitConfig, BeitModel

        config = BeitConfig(**transformers_sizes(size, image_size), use_relative_position_bias=True)
        other = BeitModel(config, add_pooling_layer=False)
        models["transformers"] = (other, lambda images: other(images).last_hidden_state)
    count = sum(parameter.numel() for parameter in ours.parameters())
    for name, (model, _) in models.items():
        model.to(device).train()
        number = sum(parameter.numel() for parameter in model.parameters())
        assert abs(number - count) < 0.01 * count, f"{name} has {number} weights, ours {count}"
    return models


def transformers_sizes(size: str, image_size: int) -> dict[str, Any]:
    """Return the sizes of our ViT as options of transformers' BeitConfig."""
    from beit.nn.vit import SIZES

    width, depth, heads = SIZES[size]
    return {
        "image_size": image_size,
        "patch_size": 16,
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
    }


if __name__ == "__main__":
    main()
