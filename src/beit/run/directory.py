"""The run directory: the files of one training run, under fixed names."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from beit.files import PARTIAL_SUFFIX, flush_to_disk, write_text

_CHECKPOINT = re.compile(r"step-(\d{9})\.pt")


@dataclass(frozen=True)
class RunConfig:
    """Where a run writes, and how often.

    Args:
        output: the run directory to create; it must not exist yet.
        seed: seed of the initial weights, the sample order, the views and the masks.
        log_every: steps between two lines of the metrics log; each checkpoint is logged too.
        checkpoint_every: steps between two checkpoints.
        keep_last: number of newest checkpoints to keep.
        keep_every: also keep checkpoints at multiples of this many steps; 0 for none.
        save_async: write checkpoints while the training continues, from a copy in host memory.
        stop_after: stop after this many steps, without changing the schedule; null for no limit.
        max_skipped: stop after this many steps in a row whose loss or gradient is not finite.
        skip_spikes: skip steps with a gradient above this multiple of its recent median; 0: none.
        profile: write the times of the parts of this many steps (docs/performance.md); 0 for none.
        track: trackers that get the metrics, with commas: tensorboard, wandb, mlflow, trackio.
        budget: time for the whole run, such as 30m or 2h; the number of epochs is reduced to fit.
        fitted_to: the budget to which the epochs were fitted; written by beit.
        chosen: settings that beit chose, and why; written by beit.
        presets: names that --preset gave; written by beit.
    """

    output: str = ""
    seed: int = 0
    log_every: int = 50
    checkpoint_every: int = 1000
    keep_last: int = 2
    keep_every: int = 0
    save_async: bool = False
    stop_after: int | None = None
    max_skipped: int = 3
    skip_spikes: float = 0.0
    profile: int = 0
    track: str = ""
    budget: str = ""
    fitted_to: str = ""
    chosen: tuple[str, ...] = ()
    presets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("log_every", "checkpoint_every", "keep_last", "max_skipped"):
            if getattr(self, name) < 1:
                raise ValueError(f"run.{name} is {getattr(self, name)}; expected 1 or more")
        for name in ("keep_every", "skip_spikes", "profile"):
            if getattr(self, name) < 0:
                raise ValueError(f"run.{name} is {getattr(self, name)}; expected 0 (none) or more")
        if self.stop_after is not None and self.stop_after < 1:
            raise ValueError(f"run.stop_after is {self.stop_after}; expected 1 or more steps")


class RunDirectory:
    """The paths inside a run directory; use `create` or `open`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.yaml"
        self.environment_file = path / "environment.json"
        self.metrics_file = path / "metrics.jsonl"
        self.speed_file = path / "speed.jsonl"
        self.images_file = path / "images.json.gz"
        self.weights_file = path / "weights.safetensors"
        self.report_file = path / "report.html"
        self.checkpoints = path / "checkpoints"

    @staticmethod
    def check_new(path: str | Path) -> None:
        """Refuse an existing directory, or an empty name."""
        if not str(path):
            raise ValueError("no run directory given; name a new one, as in --output runs/first")
        if Path(path).exists():
            resume = f", or resume that run with --resume {path}"
            raise FileExistsError(
                f"{path} exists and is not overwritten; name another directory"
                + resume * RunDirectory(Path(path)).config_file.exists()
            )

    @classmethod
    def create(
        cls, path: str | Path, config: Mapping[str, Any], about: Mapping[str, Any]
    ) -> "RunDirectory":
        """Make the directory of a new run, visible only with its configuration and environment.

        Args:
            config: the resolved configuration, nested mappings of plain values
            about: the environment, see `beit.run.environment`
        """
        cls.check_new(path)
        run, partial = cls(Path(path)), cls(partial_path(path))
        partial.checkpoints.mkdir(parents=True, exist_ok=True)
        values = json.loads(json.dumps(config, default=str))  # paths as text, tuples as lists
        recorded = {**about, "settings": values}  # `beit.run.changes` compares them
        write_text(partial.environment_file, json.dumps(recorded, indent=2) + "\n")
        comment = f"# beit {about['verb']} --config {run.config_file} --output NEW\n"
        settings = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)
        write_text(partial.config_file, comment + settings)
        partial.path.rename(run.path)
        flush_to_disk(run.path.parent)
        return run

    @classmethod
    def open(cls, path: str | Path, verb: str | None = None) -> "RunDirectory":
        """Open an existing run directory; if `verb` is given, the run must be of that command."""
        run = cls(Path(path))
        if not run.path.is_dir():
            raise FileNotFoundError(f"{run.path} is not a directory; expected a run directory")
        if not run.config_file.is_file():
            raise FileNotFoundError(f"{run.path} is not a run directory: it has no config.yaml")
        if verb not in (None, run.verb()):
            raise ValueError(f"{run.path} is a run of beit {run.verb()}, not of beit {verb}")
        return run

    def config(self) -> dict[str, Any]:
        """Read the resolved configuration: nested dicts of plain values, tuples as lists."""
        try:
            settings = yaml.safe_load(text := self.config_file.read_text(encoding="utf-8"))
            if "*" in text and any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
                raise ValueError("it refers to parts of itself by *, which beit never writes")
        except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
            raise ValueError(f"{self.config_file} is not valid YAML: {error!s:.400}") from error
        if not isinstance(settings, dict) or not settings:
            raise ValueError(f"{self.config_file} does not hold a configuration")
        return settings

    def environment(self) -> dict[str, Any]:
        """Read what `create` was told about the environment, the verb among it."""
        try:
            recorded = json.loads(self.environment_file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.environment_file} is not valid JSON: {error}") from error
        if not isinstance(recorded, dict) or "verb" not in recorded:
            raise ValueError(
                f"{self.environment_file} does not name the command of the run; expected an object "
                'with the entry "verb", as beit writes it'
            )
        return recorded

    def verb(self) -> str:
        """Read the command of this run."""
        return str(self.environment()["verb"])

    def saved_steps(self) -> dict[int, Path]:
        """Return the files of the checkpoints, by their step."""
        files = self.checkpoints.iterdir() if self.checkpoints.is_dir() else ()
        return {int(name[1]): file for file in files if (name := _CHECKPOINT.fullmatch(file.name))}

    def saved_step(self) -> int | None:
        """Return the step of the newest checkpoint; None without one."""
        return max(self.saved_steps(), default=None)


def partial_path(run: str | Path) -> Path:
    """Return the name of a run directory until it is complete (`beit.run.lock.reserve`)."""
    return Path(run).with_name(f".{Path(run).name}{PARTIAL_SUFFIX}")
