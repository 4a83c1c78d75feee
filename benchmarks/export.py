"""All exports of ViT-B/16 at 224 pixels with random weights: deviation from the model, and size.

Backbone and classifier (with a relative position bias per block, tables filled with random
numbers), the pretraining model with a shared bias and 8,192 codes, and the VQ-KD tokenizer of the
paper's size. `beit export` compares each with the model in the library of its format, for 1, 3 and
8 images at a time. Fails if a float output differs by more than 1e-4.

    python benchmarks/export.py [--only onnx]
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import record
import torch
from torch import nn

from beit.exporting import export, verification
from beit.nn.heads import ImageClassifier, ImageClassifierConfig
from beit.nn.mim import MaskedImageModel, MaskedImageModelConfig
from beit.nn.tokenizer import VQKD, VQKDConfig
from beit.nn.vit import VisionTransformer, ViTConfig, vit_config
from beit.weights.file import save_weights

SEED = 0
ALLOWED = 1e-4
PER_BLOCK: ViTConfig = vit_config("B", relative_bias="per_block")
FORMATS = {
    "backbone": ("safetensors", "published", "timm", "transformers", "onnx", "torch-export"),
    "classifier": ("safetensors", "published", "timm", "transformers", "onnx", "torch-export"),
    "pretrained": ("safetensors", "published", "transformers", "onnx"),
    "tokenizer": ("safetensors", "published", "onnx", "torch-export"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", choices=FORMATS["backbone"], help="one format; no results are written"
    )
    only = parser.parse_args().only
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, formats in FORMATS.items():
            source = Path(folder, f"{kind}.safetensors")
            save_weights(source, model(kind))
            for format_ in formats:
                if only in (None, format_):
                    rows.append({"model": kind} | measure(source, format_, Path(folder)))
            source.unlink()
    record.print_table(rows, ["model", "format", "difference", "values_to", "codes", "mb"])
    if only is None:
        result = record.provenance("cpu", [SEED, verification.SEED])
        result["batches"] = verification.BATCHES
        record.write_results("export", result | {"rows": rows})
    worst = max(row["difference"] for row in rows)
    if not worst < ALLOWED:
        sys.exit(f"an export differs by {worst:.1e}; expected less than {ALLOWED:.0e}")


def model(kind: str) -> nn.Module:
    """Build a model and randomise the parameters that are initialised to zeros or ones."""
    torch.manual_seed(SEED)
    models = {
        "backbone": lambda: VisionTransformer(PER_BLOCK),
        "classifier": lambda: ImageClassifier(ImageClassifierConfig(PER_BLOCK, 1000), 1.0),
        "pretrained": lambda: MaskedImageModel(MaskedImageModelConfig(vit_config("B"))),
        "tokenizer": lambda: VQKD(VQKDConfig()),
    }
    built = models[kind]()
    with torch.no_grad():
        for name, tensor in built.named_parameters():
            if name.endswith("table"):
                tensor.normal_()
            elif name.endswith(("bias", "gamma_1", "gamma_2")):
                tensor.add_(torch.randn_like(tensor), alpha=0.1)
            elif name.startswith("encode_task") or name == "head.weight":
                tensor.normal_(std=0.1)  # otherwise vectors and logits would be near zero
    return built.eval()


def measure(source: Path, format_: str, folder: Path) -> dict[str, Any]:
    """Export, and return the largest deviation over all batches and outputs."""
    suffixes = export.FORMATS[format_].suffixes
    output = folder / f"out-{source.stem}-{format_}{suffixes[0] if suffixes else ''}"
    result = export.run(export.Config(str(source), str(output), format_))
    floats = [row for row in result.differences if row.equal is None]
    worst = max(floats, key=lambda row: row.largest)
    equal = [row.equal for row in result.differences if row.equal is not None]
    files = [file for file in (output, *output.glob("*")) if file.is_file()]
    row = {
        "format": format_,
        "difference": worst.largest,
        "values_to": worst.scale,
        "codes": f"{min(equal):.3%}" if equal else None,
        "mb": sum(file.stat().st_size for file in files) / 1e6,
    }
    for file in files:
        file.unlink()
    return row


if __name__ == "__main__":
    main()
