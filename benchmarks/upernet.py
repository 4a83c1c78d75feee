"""Our UPerNet decoder compared with that of segmentation-models-pytorch: outputs, sizes, cost.

    pip install --no-deps segmentation-models-pytorch
    python benchmarks/upernet.py [--width 768] [--channels 768] [--image 512] [--batch 1]

Both read the same four maps of a ViT's pyramid. Theirs gets our weights. Its layer norms on the
maps are removed to compare outputs, because the published decoder has none; its cost is measured
with them. Weights and maps are random, in float32. A time is the minimum over the rounds, in CPU
time (set OMP_NUM_THREADS=1, or waiting threads are counted).
"""

import argparse
import time

import record

SEED = 0
TOLERANCE = 1e-4  # largest allowed difference of the logits


def main() -> None:
    options = parse()
    import torch

    torch.manual_seed(SEED)
    ours, theirs = build(options)
    side = options.image // 16
    maps = [
        torch.randn(options.batch, options.width, side * scale // 2, side * scale // 2)
        for scale in (8, 4, 2, 1)
    ]
    clock = time.process_time
    rows = []
    with torch.no_grad():
        for name, model in {"beit": ours, "segmentation-models-pytorch": theirs}.items():
            model(list(maps))
            seconds = float("inf")
            for _ in range(options.rounds):
                start = clock()
                logits = model(list(maps))
                seconds = min(seconds, clock() - start)
            rows.append(
                {
                    "decoder": name,
                    "output": list(logits.shape),
                    "parameters": sum(p.numel() for p in model.parameters()),
                    "gflops": flops(model, maps) / 1e9,
                    "seconds": seconds,
                }
            )
        without_norms(theirs)
        difference = float((theirs(list(maps)) - ours(list(maps))).abs().max())
        largest = float(ours(list(maps)).abs().max())
    record.print_table(rows, list(rows[0]))
    result = record.provenance("cpu", [SEED])
    result["peer"] = version()
    result["sizes"] = vars(options)
    result["decoders"] = rows
    result["largest_difference"], result["largest_logit"] = difference, largest
    record.write_results("upernet", result)
    met = "met" if difference <= TOLERANCE else "not met"
    print(f"largest difference {difference:.1e} of logits up to {largest:.2f}; {TOLERANCE}: {met}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--channels", type=int, default=768)
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--image", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def build(options: argparse.Namespace):
    """Build both decoders, theirs with our weights; batch norms have random statistics."""
    import torch
    from segmentation_models_pytorch.base import SegmentationHead
    from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder as TheirDecoder

    from beit.nn.segmenter import UPerNetDecoder

    D, C, Y = options.width, options.channels, options.classes
    ours = UPerNetDecoder(D, C, Y, dropout=0.0)
    for module in ours.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    # Theirs expects maps of full and half size, too, but does not use them.
    decoder = TheirDecoder((3, D, D, D, D, D), decoder_channels=C)
    head = SegmentationHead(C, Y, kernel_size=1)
    pairs = [
        *zip([block[1] for block in decoder.psp.blocks], ours.pooled, strict=True),
        (decoder.psp.out_conv, ours.bottleneck),
        *zip(
            [block.conv_norm_relu for block in decoder.fpn_lateral_blocks],
            reversed(ours.lateral),
            strict=True,
        ),
        *zip(decoder.fpn_conv_blocks, reversed(ours.smooth), strict=True),
        (decoder.fusion_block, ours.fuse),
    ]
    for their_block, our_block in pairs:
        their_block[0].load_state_dict(our_block.conv.state_dict())
        their_block[1].load_state_dict(our_block.norm.state_dict())
    head[0].load_state_dict(ours.head.state_dict())

    class Theirs(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder, self.head = decoder, head

        def forward(self, maps):
            return self.head(self.decoder([None, None, *maps]))

    return ours.eval(), Theirs().eval()


def without_norms(theirs) -> None:
    """Remove the layer norms on the maps."""
    import torch

    norms = theirs.decoder.feature_norms
    for index in range(len(norms)):
        norms[index] = torch.nn.Identity()


def flops(model, maps) -> int:
    """Count multiplications and additions of convolutions and matrices, two for each pair."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        model(list(maps))
    return counter.get_total_flops()


def version() -> str:
    from importlib.metadata import version

    return f"segmentation-models-pytorch {version('segmentation-models-pytorch')}"


if __name__ == "__main__":
    main()
