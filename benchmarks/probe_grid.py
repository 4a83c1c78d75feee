"""The linear probe compared with scikit-learn, and ten learning rates compared with one.

Features are computed once, for [CLS] and mean. The first table compares the accuracy of `beit
probe`'s linear classifier with LogisticRegression (lbfgs, the same standardised features, C chosen
on the same held-out part; test images are never used for a choice). Then the time of a probe with
ten rates and with one: `probe` is the time of the command (features of both sets, k-NN, fit), `fit`
that of training the classifiers alone. `fit` is also timed on random features of several sizes: ten
rates take ten times the arithmetic, so the ratio depends on the share of everything else.

    OMP_NUM_THREADS=1 python benchmarks/probe_grid.py --model runs/pretrain \
        --train data/cifar10/train.parquet --test data/cifar10/test.parquet --crop-ratio 1
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import record
import torch
from torch import Tensor

from beit.data.classes import Labelled, checked_classes, renumbered
from beit.data.sources import open_source
from beit.nn.pooling import kinds_of
from beit.probing import probe
from beit.probing.features import FeatureReader
from beit.probing.training import fit, linear_grid, probe_features, split
from beit.run.device import DeviceConfig
from beit.run.launch import launch
from beit.weights.frozen import open_frozen_model

PENALTIES = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)  # values of C, the inverse regularisation
SIZES = ((5000, 192, 10, 3), (5000, 768, 100, 1), (2048, 768, 1000, 1))  # n, D, Y, epochs
ONE_RATE = (0.1,)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", help="model for beit probe; without it only random features are timed"
    )
    parser.add_argument("--train", default="")
    parser.add_argument("--test", default="")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--test-limit", type=int)
    parser.add_argument("--crop-ratio", type=float, default=0.875)
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds of each timing; the best counts"
    )
    parser.add_argument("--name", default="probe_grid", help="name of the results file")
    options = parser.parse_args()
    config = probe.Config(
        model=options.model or "random features",
        train=options.train,
        test=options.test,
        limit=options.limit,
        test_limit=options.test_limit,
        crop_ratio=options.crop_ratio,
        num_workers=0,
        device=DeviceConfig(accelerator=options.accelerator),
    )
    fabric = launch(config.device)
    result: dict[str, Any] = record.provenance(fabric.device.type, [config.seed])
    if options.model:
        measured = on_images(config, fabric)
        record.print_table(measured["accuracy"], list(measured["accuracy"][0]))
        record.print_table([measured["seconds"]], list(measured["seconds"]))
        result |= measured
    rows = [on_random(size, config, fabric.device, options.rounds) for size in SIZES]
    record.print_table(rows, list(rows[0]))
    record.write_results(options.name, result | {"random": rows})


def on_images(config: probe.Config, fabric: Any) -> dict[str, Any]:
    """Compute features once, and compare accuracies and times on them."""
    train = open_source(config.train, limit=config.limit)
    test = open_source(config.test, limit=config.test_limit)
    labelled = Labelled("train", config.train, train)
    classes = checked_classes(labelled)
    test = renumbered(Labelled("test", config.test, test), classes, labelled.where).source
    frozen = open_frozen_model(config.model, device=fabric.device)
    kinds = kinds_of("last", None, frozen.depth, frozen.has_cls)
    started = time.perf_counter()
    reader = FeatureReader(frozen, config, fabric)
    train_set = reader.cache(kinds, train, "training")
    test_set = reader.cache(kinds, test, "test")
    seconds = {"features": time.perf_counter() - started, "ten rates": 0.0, "one rate": 0.0}
    accuracy = []
    for kind in kinds:
        data = tuple(
            tensor.to(fabric.device)
            for part in (train_set, test_set)
            for tensor in (part.of(kind), part.labels)
        )
        for name, rates in (("one rate", ONE_RATE), ("ten rates", config.rates)):
            started = time.perf_counter()
            settings = replace(config, rates=rates)
            row = probe_features(kind, data[:2], data[2:], settings, classes.number)
            seconds[name] += time.perf_counter() - started
        theirs, penalty = logistic_regression(*(tensor.cpu() for tensor in data), config)
        accuracy.append(
            {
                "features": kind.name,
                "ours": row["linear"],
                "rate": row["rate"],
                "scikit-learn": theirs,
                "C": penalty,
                "points apart": 100 * abs(row["linear"] - theirs),
            }
        )
    whole = [seconds["features"] + seconds[name] for name in ("ten rates", "one rate")]
    seconds |= {"probe, ratio": whole[0] / whole[1]}
    seconds |= {"after features, ratio": seconds["ten rates"] / seconds["one rate"]}
    sizes = {"train": len(train_set.labels), "test": len(test_set.labels), "width": frozen.width}
    return {"sizes": sizes, "accuracy": accuracy, "seconds": seconds}


def logistic_regression(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, config: probe.Config
) -> tuple[float, float]:
    """Fit scikit-learn's classifier on our training part; return test accuracy and chosen C."""
    from sklearn.linear_model import LogisticRegression

    fitted, held_out = split(len(train), config.held_out, config.seed)
    std, mean = torch.std_mean(train[fitted], dim=0, correction=0)
    std = std.where(std > 0, 1.0)
    best = (-1.0, 0.0, 0.0)
    for penalty in PENALTIES:
        model = LogisticRegression(C=penalty, max_iter=2000)
        model.fit(((train[fitted] - mean) / std).numpy(), train_labels[fitted].numpy())
        held_out_accuracy, test_accuracy = (
            model.score(((features - mean) / std).numpy(), labels.numpy())
            for features, labels in (
                (train[held_out], train_labels[held_out]),
                (test, test_labels),
            )
        )
        if held_out_accuracy > best[0]:
            best = (held_out_accuracy, test_accuracy, penalty)
    return best[1], best[2]


def on_random(
    size: tuple[int, int, int, int], config: probe.Config, device: torch.device, rounds: int
) -> dict[str, Any]:
    """Time `fit` on random features: milliseconds a step, ten rates and one."""
    n, D, Y, epochs = size
    generator = torch.Generator().manual_seed(config.seed)
    features = torch.randn(n, D, generator=generator).to(device)
    labels = torch.randint(Y, (n,), generator=generator).to(device)
    steps = epochs * math.ceil(n / config.batch_size)

    def train_with(rates: tuple[float, ...]) -> None:
        grid = linear_grid(features, Y, steps, replace(config, rates=rates))
        fit(grid, features, labels, epochs, config.batch_size, config.seed)

    ten, one = (
        1e3 * best_seconds(lambda rates=rates: train_with(rates), device, rounds) / steps
        for rates in (config.rates, ONE_RATE)
    )
    row = {"n": n, "D": D, "Y": Y, "ten rates, ms a step": ten, "one rate, ms a step": one}
    return row | {"fit, ratio": ten / one}


def best_seconds(action: Callable[[], None], device: torch.device, rounds: int) -> float:
    """Time an action a few times, after once that warms up."""
    times = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times[1:])


if __name__ == "__main__":
    main()
