"""Images a second from JPEG files to batches of both views, against torchvision and the published.

One process, one thread. The JPEGs are drawn: noise at several scales, smooth as photographs are,
500 x 375, at the quality that makes 100 KB. Each way reads the same files, decodes them and draws
random views as for pretraining at 224 pixels (jitter, flip, crop, resize):

- ours: the training's own batches, as they reach the model;
- torchvision v2: its transforms after our decoder, one view for model and tokenizer; jitter comes
  last, as in ours, and takes its contrast from the crop;
- published: PIL decodes, PIL and torchvision v1 transform, and each of the two views is resized;
- decoding alone: our decoder.

And our batches of 32-pixel images that lie decoded in memory, as CIFAR's do.

    python benchmarks/loader.py
"""

import argparse
import io
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import record

HEIGHT, WIDTH = 375, 500
JITTER, MIN_SCALE = 0.4, 0.2  # of the published recipe
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64, help="JPEGs, all of them in each round")
    parser.add_argument("--small", type=int, default=10_240, help="32-pixel images in memory")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=224, help="of both views")
    parser.add_argument("--kilobytes", type=int, default=100)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.images % options.batch or options.small % options.batch:
        parser.error("--images and --small must be multiples of --batch")
    result = measure(options)
    record.print_table(result["rows"], ["way", "images_per_s", "cpu_ms", "beside_decoding_ms"])
    print(f"mean file: {result['mean_kilobytes']:.0f} KB")
    result = record.provenance(options.device, [SEED]) | {"settings": vars(options)} | result
    record.write_results(f"loader-{options.device}", result)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time all ways in turn, in one thread."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            files = draw_jpegs(Path(folder), options.images, options.kilobytes * 1000)
            mean = sum(file.stat().st_size for file in files) / len(files) / 1000
            ways = {
                "ours": our_batches(folder, options),
                "torchvision v2": by_torchvision(files, options.size),
                "published": as_published(files, options.size),
                "decoding alone": decoding(files),
            }
            timings = record.in_turn(ways, options.rounds, device=options.device)
        small = record.in_turn(
            {"ours, 32 pixels in memory": in_memory(options)}, options.rounds, device=options.device
        )
    finally:
        torch.set_num_threads(threads)
    counts = dict.fromkeys(timings, options.images) | dict.fromkeys(small, options.small)
    rows = []
    for way, timing in (timings | small).items():
        row = {
            "way": way,
            "images_per_s": counts[way] / timing.seconds,
            "cpu_ms": timing.cpu_seconds / counts[way] * 1e3,
        }
        if way in timings:
            extra = timing.cpu_seconds - timings["decoding alone"].cpu_seconds
            row["beside_decoding_ms"] = extra / options.images * 1e3
            row["ours_is_faster"] = timings["ours"].against(timing)
        rows.append(row)
    return {"rows": rows, "mean_kilobytes": mean}


def draw_jpegs(folder: Path, count: int, size: int) -> list[Path]:
    """Draw images of noise whose amplitude falls with its frequency, saved to files near a size."""
    import numpy as np
    from PIL import Image

    random, files = np.random.default_rng(SEED), []
    for number in range(count):
        pixels = np.full((HEIGHT, WIDTH, 3), 128.0)
        for cells in (3, 6, 12, 24, 48, 96, 192):
            coarse = random.normal(size=(cells * 3 // 4 + 1, cells, 3)) * 90 / cells**0.5
            for channel in range(3):
                layer = Image.fromarray(coarse[..., channel].astype(np.float32))
                pixels[..., channel] += layer.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        files.append(folder / f"{number:05}.jpg")
        low, high = 5, 100
        while high - low > 1:  # the highest quality that does not exceed the size
            quality = (low + high) // 2
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=quality)
            low, high = (low, quality) if buffer.tell() > size else (quality, high)
        image.save(files[-1], "JPEG", quality=low)
    return files


def our_batches(folder: str, options: argparse.Namespace) -> Callable[[], None]:
    """Return a function that gives all JPEGs to the device once, as training does."""
    return epoch_after_epoch(folder, options, options.images, (options.size, options.size))


def in_memory(options: argparse.Namespace) -> Callable[[], None]:
    """Return a function that gives all 32-pixel images to the device once."""
    spec = f"shapes://{options.small}?size=32"
    return epoch_after_epoch(spec, options, options.small, (32, 32), 2.0)


def epoch_after_epoch(
    spec: str,
    options: argparse.Namespace,
    count: int,
    size: tuple[int, int],
    cache_gigabytes: float = 0.0,
) -> Callable[[], None]:
    """Return a function that draws the views of the next epoch of a source."""
    from beit.data.batches import DataConfig
    from beit.data.sources import open_source
    from beit.data.views import TrainViews, ViewConfig
    from beit.run.batches import train_batches
    from beit.run.device import DeviceConfig
    from beit.run.directory import RunConfig
    from beit.run.launch import launch
    from beit.run.optim import OptimConfig

    source = open_source(spec, cache_gigabytes=cache_gigabytes)
    views = TrainViews(ViewConfig(min_scale=MIN_SCALE, color_jitter=JITTER), size, size)
    steps, epochs = count // options.batch, options.rounds + 1
    optim = OptimConfig(
        batch_size=options.batch, epochs=epochs, learning_rate=0.0, warmup_epochs=0,
        betas=(0.9, 0.9), weight_decay=0.0,
    )  # fmt: skip
    config = argparse.Namespace(
        optim=optim, data=DataConfig(num_workers=0), run=RunConfig(seed=SEED)
    )
    fabric = launch(DeviceConfig(accelerator=options.device))
    journal: Any = argparse.Namespace(
        config=config, fabric=fabric, start_step=0, last_step=epochs * steps
    )
    # Not prefetched: a thread would read on while the other ways are timed.
    stream = iter(train_batches(journal, source, views))

    def run() -> None:
        for batch in islice(stream, steps):
            batch.images.to(fabric.device), batch.target_images.to(fabric.device)

    return run


def by_torchvision(files: list[Path], size: int) -> Callable[[], None]:
    """Return a function that reads all files once through torchvision's transforms of tensors."""
    import torch
    from torchvision.transforms import v2

    transform = v2.Compose(  # jitter last: on fewer pixels
        [
            v2.RandomResizedCrop(
                size, scale=(MIN_SCALE, 1), interpolation=v2.InterpolationMode.BICUBIC
            ),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(JITTER, JITTER, JITTER),
        ]
    )
    read = decoder()

    def run() -> None:
        torch.stack([transform(read(file)) for file in files])

    return run


def as_published(files: list[Path], size: int) -> Callable[[], None]:
    """Return a function that reads all files once in the manner of the published code.

    The views are float tensors: the first normalised, the second in [0, 1].
    """
    import torch
    from PIL import Image
    from torchvision import transforms
    from torchvision.transforms import functional

    from beit.nn.patches import IMAGENET_MEAN, IMAGENET_STD

    common = transforms.Compose(
        [transforms.ColorJitter(JITTER, JITTER, JITTER), transforms.RandomHorizontalFlip()]
    )
    bicubic = transforms.InterpolationMode.BICUBIC

    def views(file: Path) -> tuple[torch.Tensor, torch.Tensor]:
        with open(file, "rb") as stream:
            image = common(Image.open(stream).convert("RGB"))
        box = transforms.RandomResizedCrop.get_params(image, (MIN_SCALE, 1), (3 / 4, 4 / 3))
        pictures = [
            functional.resized_crop(image, *box, (size, size), interpolation=bicubic)
            for _ in range(2)
        ]
        first, second = (functional.to_tensor(picture) for picture in pictures)
        return functional.normalize(first, IMAGENET_MEAN, IMAGENET_STD), second

    def run() -> None:
        for column in zip(*(views(file) for file in files), strict=True):
            torch.stack(column)

    return run


def decoding(files: list[Path]) -> Callable[[], None]:
    """Return a function that reads and decodes all files once."""
    read = decoder()

    def run() -> None:
        for file in files:
            read(file)

    return run


def decoder() -> Callable[[Path], Any]:
    from beit.data.pixels.decoding import decode

    return lambda file: decode(file.read_bytes(), file.name)


if __name__ == "__main__":
    main()
