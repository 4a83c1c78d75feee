"""The last three lines of a tokenizer's training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from beit.command.ending import Ending, beside, last_values, whole, words
from beit.draw.names import percent
from beit.run.directory import RunDirectory
from beit.run.journal import Result
from beit.tokenizer.codebook_log import collapsed

if TYPE_CHECKING:
    from beit.tokenizer import dvae as dvae_training
    from beit.tokenizer import vqkd as vqkd_training

    Config = dvae_training.Config | vqkd_training.Config


def ending(config: Config, result: Result) -> Ending:
    """Say how much of the codebook is used; pretraining on its codes is next, if they are good."""
    run, data = RunDirectory(result.directory), config.data
    values = last_values(run.metrics_file, result.metrics)
    images = whole(data.train, data.validation)
    then = words(
        "pretrain",
        data=images,
        validation=data.validation if images == data.train else None,
        tokenizer=run.path,
        output=beside(run.path, "pretrained"),
        budget=config.run.budget or config.run.fitted_to,  # the latter of a resumed run
    )
    epochs = {"optim.epochs": f"{4 * config.optim.epochs:g}"}
    longer = words("train-tokenizer", resume=run.path, **epochs)
    figure = f"loss {values['loss']:.3g}: the codebook has not started" if "loss" in values else ""
    for prefix, seen in (("", "the last training images"), ("val_", "the validation images")):
        if (use := values.get(f"{prefix}usage")) is not None:
            perplexity = values[f"{prefix}perplexity"]
            figure = f"{percent(use)} of the codes in use on {seen}, perplexity {perplexity:.0f}"
            if collapsed(perplexity, config.model.num_codes, values[f"{prefix}choices"]):
                figure += ": a collapsed codebook, or too short a run; mend it before pretraining"
                then = longer
    if values.get("val_reconstruction", 0.0) > values.get("val_constant", math.inf):
        figure += "; it rebuilds features worse than a constant does: train it longer first"
        then = longer
    return Ending(
        f"{run.path}, a tokenizer of {config.model.num_codes} codes; report {run.report_file}",
        figure,
        then,
    )
