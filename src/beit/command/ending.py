"""The end of a command: what it made, the figure that matters, and the next command.

A verb's module has `ending(config, result)`, which the command calls after `run`; in Python it can
be called for the same lines. `show` prints them to standard output.
"""

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

from beit.command import presets
from beit.run.log import read_log


class Ending(NamedTuple):
    """Lines for people: what was made, the figure that matters, and what to type next.

    Attributes:
        made: what the verb made, and where
        figure: the figure that matters
        then: words of the next command, without `beit`; a first word `python` starts another one
        others: words of further commands, for which `show` does the same
    """

    made: str
    figure: str
    then: Sequence[str]
    others: Sequence[Sequence[str]] = ()


def show(ending: Ending | None, used: Iterable[str] = ()) -> None:
    """Print an ending, in the first of several processes.

    Args:
        ending: None, if standard output is for data, prints nothing
        used: presets of this command, which the next one continues if they have a part for it; a
            run that is resumed has its own
    """
    if ending is None or not is_first_process():
        return
    print(f"made    {ending.made}")
    print(f"figure  {ending.figure}")
    for verb, *words in (ending.then, *ending.others):
        chosen = [
            f"--preset={name}"
            for name in used
            if "--resume" not in words and verb in presets.read_yaml(presets.path_of(name))
        ]
        command = [verb, *words] if verb == "python" else ["beit", verb, *chosen, *words]
        print(f"next    {shlex.join(command)}", flush=True)


def is_first_process() -> bool:
    """Whether this is the only process of a command, or the first of several."""
    ranks = ("RANK",) if "RANK" in os.environ else ("NODE_RANK", "LOCAL_RANK")
    return all(os.environ.get(name, "0") == "0" for name in ranks)


def words(verb: str, *positionals: str | list[str], **options: Any) -> list[str]:
    """Return the words of a command; an option without a value (empty or None) is left out."""
    lists = [[value] if isinstance(value, str) else value for value in positionals]
    pairs = [
        (f"--{name}", str(value)) for name, value in options.items() if value not in ("", None)
    ]
    return [*verb.split(), *chain(*lists), *chain.from_iterable(pairs)]


def whole(train: str, validation: str) -> str:
    """Return the set that was divided into these two parts, DATA[:90%] and DATA[90%:]; else train.

    What follows a training, as features, is for all images.
    """
    data, _, share = train.removesuffix("]").rpartition("[:")
    return data if share and validation == f"{data}[{share}:]" else train


def again(verb: str, run: Path) -> str:
    """Return the command that repeats a run with its settings, in a new directory."""
    output = beside(run, f"{run.name}-again")
    return shlex.join(["beit", *words(verb, config=run / "config.yaml", output=output)])


def run_facts(verb: str, run: Path, config: Any) -> dict[str, str]:
    """Return what the report of a training says of it: how to repeat it, images, length, seed."""
    optim, budget = config.optim, config.run.fitted_to
    epochs = getattr(optim, "epochs", None)
    length = f"{optim.steps} steps" if epochs is None else f"{epochs:g} epoch{'s' * (epochs != 1)}"
    length += f", batches of {optim.batch_size}"
    facts = {
        "command": again(verb, run),
        "images": config.data.train,
        "held out for validation": config.data.validation or "none",
        "length": f"{length}; budget {budget}" if budget else length,
        "chosen": "; ".join(config.run.chosen),
        "seed": str(config.run.seed),
    }
    return {name: value for name, value in facts.items() if value}


def opened(page: Path) -> list[str]:
    """Return the words of a command that opens a page in the browser."""
    return ["python", "-m", "webbrowser", str(page)]


def last_values(file: Path, metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the last value of each metric of a training: `metrics`, else those of its log."""
    values: dict[str, float] = {}
    for record in read_log(file):
        values |= record
    return {**values, **metrics}


def beside(made: str | Path, name: str) -> str:
    """Name a path beside what was made, that does not exist: NAME, NAME-2, NAME-3, ..."""
    return str(first_free(Path(made).parent / name))


def first_free(path: Path) -> Path:
    """Return the first of path, path-2, path-3, ... that does not exist."""
    numbered = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in count(2))
    return next(candidate for candidate in chain([path], numbered) if not candidate.exists())
