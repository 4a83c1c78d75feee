"""Photos of 12 megapixels to training views, decoded for every view or shrunk once.

One process, one thread, the batches of a training, by CPU time. In turn: the whole file decoded for
each view; a part of it (`--data.shrink true --data.shrink_gigabytes 0`); shrunk images from disk;
from memory. And how far images and views lie from those of the whole file, in levels of 256.

    python benchmarks/photos.py PHOTOS && python benchmarks/shrinking.py PHOTOS
"""

import argparse
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import record

SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", metavar="PHOTOS")
    parser.add_argument("--images", type=int, default=64, help="all of them in each round")
    parser.add_argument("--sizes", type=int, nargs="*", default=[96, 224], help="of the views")
    parser.add_argument("--views", type=int, default=4, help="of each image, for the errors")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        results = [measure(options, size, f"{folder}/{size}") for size in options.sizes]
    rows = [row for result in results for row in result["rows"]]
    record.print_table(rows, ["size", "way", "images_per_s", "cpu_ms"])
    errors = [row for result in results for row in result["errors"]]
    record.print_table(errors, ["size", "what", "mean", "rms", "largest", "other_crops", "views"])
    result = record.provenance("cpu", [SEED]) | {"settings": vars(options) | {"data": "PHOTOS"}}
    result["command"] = result["command"].replace(options.data, "PHOTOS")
    record.write_results("shrinking-cpu", result | {"rows": rows, "errors": errors})


def measure(options: argparse.Namespace, size: int, folder: str) -> dict[str, Any]:
    """Time all ways to views of one size, and compare what they give."""
    from beit.data.shrinking import Shrinking, ShrunkImages
    from beit.data.sources import open_source
    from beit.data.views import EvalView, TrainViews, ViewConfig

    views, centre = TrainViews(ViewConfig(), (size, size), (size, size)), EvalView((size, size))

    def opened(shrinking: Shrinking | None, gigabytes: float = 0.0) -> Any:
        return open_source(
            options.data, limit=options.images, cache_gigabytes=gigabytes, shrinking=shrinking
        )

    kept = Shrinking(views.need, ShrunkImages(folder, 10.0))
    sources = {
        "whole file": opened(None),
        "part of it": opened(Shrinking(views.need)),
        "from disk": opened(kept),
        "from memory": opened(kept, 10.0),  # which fills the disk
    }
    ways = {way: epochs(source, views, options.rounds) for way, source in sources.items()}
    rows = []
    for way, timing in record.in_turn(ways, options.rounds).items():
        seconds = timing.cpu_seconds / options.images
        rows.append(
            {"size": size, "way": way, "images_per_s": 1 / seconds, "cpu_ms": seconds * 1e3}
        )
    whole, part = sources["whole file"], sources["part of it"]
    errors = compared(views, whole, part, options.views)
    centred = opened(Shrinking(centre.need))
    errors["centre crops"] = distance(
        (centre(whole.image(index)), centre(centred.image(index))) for index in range(len(whole))
    )
    errors_rows = [{"size": size, "what": what} | row for what, row in errors.items()]
    return {"rows": rows, "errors": errors_rows}


def epochs(source: Any, views: Any, rounds: int) -> Callable[[], None]:
    """Return a function that reads the batch of all images of the next epoch."""
    from beit.data.batches import TrainBatches

    batches = TrainBatches(
        source, views, batch_size=len(source), seed=SEED, start_step=0, num_steps=rounds + 1
    )
    stream = iter(batches)
    return lambda: next(stream) and None


def compared(views: Any, whole: Any, part: Any, count: int) -> dict[str, dict[str, float]]:
    """Compare shrunk images, views of them with the same boxes, and views as they are drawn.

    The boxes of a shrunk image lie on its own pixels, so a view moves by up to half of one.
    """
    from beit.data.order import sample_generator
    from beit.data.views import resized

    images, boxes, drawn, others = [], [], [], 0
    for index in range(len(whole)):
        image, shrunk = whole.image(index), part.image(index)
        exact = resized(image[None], tuple(shrunk.shape[-2:]))[0]
        images.append((exact, shrunk))
        for epoch in range(count):
            samples = [
                views.sample(each, sample_generator(SEED, epoch, index))
                for each in (image, exact, shrunk)
            ]
            boxes.append((samples[1].images, samples[2].images))
            drawn.append((samples[0].images, samples[2].images))
            shares = zip(samples[0].crops, samples[2].crops, strict=True)
            others += max(abs(a - b) for a, b in shares) > 1.01 / min(shrunk.shape[-2:])
    return {
        "shrunk images": distance(images),
        "training views, same box": distance(boxes),
        "training views": distance(drawn) | {"other_crops": others, "views": len(drawn)},
    }


def distance(pairs: Iterable[tuple[Any, Any]]) -> dict[str, float]:
    """Return the difference of pairs of images in levels: mean, root mean square, largest."""
    import torch

    differences = [(a.float() - b.float()).abs().flatten() for a, b in pairs]
    every = torch.cat(differences)
    rms = float(every.square().mean().sqrt())
    return {"mean": float(every.mean()), "rms": rms, "largest": float(every.max())}


if __name__ == "__main__":
    main()
