"""The trackers that a run is passed on to by `beit.run.mirror`.

A resumed run continues its record. No value is written twice: TensorBoard's files are written anew
from the logs, MLflow is queried for the values that it has, and `tracking.json` in the run
directory keeps the last step that was passed on to Weights & Biases and trackio.
"""

import io
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from uuid import uuid4

from beit.files import write_text
from beit.run.directory import RunDirectory
from beit.run.settings import flat

PROJECT = "beit"  # unless the tracker's own environment variable names another
MLFLOW_LONGEST = 5000  # characters of a value


class Row(NamedTuple):
    """What was logged in one step, by name; `time` in seconds since 1970, None if not known."""

    step: int
    time: float | None
    values: dict[str, float]
    warnings: list[str]


class Picture(NamedTuple):
    """A PNG of the report, and its description."""

    alt: str
    data: bytes

    def image(self) -> Any:
        """Return it as a PIL image."""
        from PIL import Image

        return Image.open(io.BytesIO(self.data))


class Tracker(Protocol):
    """A tracker; after an error it gets nothing more."""

    def log(self, rows: list[Row]) -> None: ...
    def report(self, step: int, page: Path, pictures: list[Picture]) -> None: ...
    def close(self, finished: bool) -> None: ...


class State:
    """What the run directory keeps about a tracker, for when the run is resumed."""

    def __init__(self, file: Path, name: str) -> None:
        self._file, self._name = file, name
        entry = self._all().get(name)
        self.values: dict[str, Any] = entry if isinstance(entry, dict) else {}

    @property
    def step(self) -> int:
        """The last step that was passed on; -1 before the first."""
        return int(self.values.get("step", -1))

    def keep(self, **values: Any) -> None:
        self.values |= values
        text = json.dumps({**self._all(), self._name: self.values}, indent=2)
        write_text(self._file, text + "\n")

    def _all(self) -> dict[str, Any]:
        if not self._file.exists():
            return {}
        content = json.loads(self._file.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}


class TensorBoard:
    """Event files in RUN/tensorboard: `tensorboard --logdir` of the folder of all runs."""

    def __init__(self, directory: RunDirectory, state: State) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        folder = directory.path / "tensorboard"
        self._old = list(folder.glob("events.out.tfevents.*")) if folder.is_dir() else []
        self._writer = EventFileWriter(str(folder))
        if self._old:  # a running TensorBoard then forgets what it has read from them
            self._add(0, None, session_log={"status": "START"})
        settings = directory.config_file.read_text(encoding="utf-8")
        self._add(0, None, summary={"value": [self._text("settings", settings)]})

    def _add(self, step: int, wall_time: float | None, **what: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.add_event(Event(step=step, wall_time=wall_time or time.time(), **what))

    def _text(self, tag: str, text: str) -> Any:
        from tensorboard.plugins.text.metadata import create_summary_metadata

        content = ("    " + text).replace("\n", "\n    ").encode()  # Markdown: as it is
        tensor = {"dtype": "DT_STRING", "string_val": [content]}
        return {"tag": tag, "metadata": create_summary_metadata(tag, ""), "tensor": tensor}

    def log(self, rows: list[Row]) -> None:
        for row in rows:
            values: list[Any] = [{"tag": n, "simple_value": v} for n, v in row.values.items()]
            if row.warnings:
                values.append(self._text("warnings", "\n".join(row.warnings)))
            self._add(row.step, row.time, summary={"value": values})
        self._writer.flush()
        for file in self._old:  # the new file has their values
            file.unlink(missing_ok=True)
        self._old = []

    def report(self, step: int, page: Path, pictures: list[Picture]) -> None:
        for number, picture in enumerate(pictures, 1):
            height, width = (int.from_bytes(picture.data[i : i + 4]) for i in (20, 16))
            image = {"height": height, "width": width, "encoded_image_string": picture.data}
            tag = f"report/{number:02d} {picture.alt}"
            self._add(step, None, summary={"value": [{"tag": tag, "image": image}]})

    def close(self, finished: bool) -> None:
        self._writer.close()


class _ByStep:
    """A tracker that cannot be queried: `State` keeps the last step that was passed on."""

    _run: Any

    def __init__(self, state: State) -> None:
        self._state, self._last = state, state.step

    def log(self, rows: list[Row]) -> None:
        for row in rows:
            if row.step > self._last:
                self._state.keep(step=row.step)
                text = {"warning": "\n".join(row.warnings)} if row.warnings else {}
                self._run.log({**row.values, **text}, step=row.step)

    def report(self, step: int, page: Path, pictures: list[Picture]) -> None:
        if self._state.values.get("report") != step:
            self._state.keep(report=step)
            self._run.log(self._shown(page.read_text(encoding="utf-8"), pictures), step=step)

    def _shown(self, page: str, pictures: list[Picture]) -> dict[str, Any]:
        """Return the page and pictures of a report as the tracker takes them."""
        raise NotImplementedError


class WandB(_ByStep):
    """Weights & Biases, offline if it has no key: `wandb sync` then uploads what RUN/wandb has."""

    def __init__(self, directory: RunDirectory, state: State) -> None:
        import wandb

        super().__init__(state)
        if "id" not in state.values:
            state.keep(id=uuid4().hex[:16])
        mode = os.environ.get("WANDB_MODE")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=directory.path.resolve().name,
            id=state.values["id"],
            resume="allow",
            dir=os.environ.get("WANDB_DIR", str(directory.path)),
            config=directory.config(),
            mode=mode or ("online" if wandb.login(prompt=False) else "offline"),
            settings=wandb.Settings(console="off", init_timeout=60),
        )

    def _shown(self, page: str, pictures: list[Picture]) -> dict[str, Any]:
        import wandb

        images = [wandb.Image(picture.image(), caption=picture.alt) for picture in pictures]
        return {"report/page": wandb.Html(page, inject=False), "report/pictures": images}

    def close(self, finished: bool) -> None:
        self._run.finish(0 if finished else 1)


class MLflow:
    """MLflow, by MLFLOW_TRACKING_URI; without one in the files of RUN/mlruns."""

    def __init__(self, directory: RunDirectory, state: State) -> None:
        address = os.environ.get("MLFLOW_TRACKING_URI")
        if not address:
            os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"  # which it no longer develops
            address = (directory.path / "mlruns").absolute().as_uri()
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient(tracking_uri=address)
        self._recorded: set[tuple[str, int]] = set()
        if "id" in state.values:
            self._id = state.values["id"]
            for name in self._client.get_run(self._id).data.metrics:
                history = self._client.get_metric_history(self._id, name)
                self._recorded |= {(name, metric.step) for metric in history}
            self._client.update_run(self._id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        run = self._client.create_run(number, run_name=directory.path.resolve().name)
        self._id = run.info.run_id
        settings = flat(directory.config()).items()
        params = [Param(key, str(value)[:MLFLOW_LONGEST]) for key, value in settings]
        for start in range(0, len(params), 100):  # the most that it takes at once
            self._client.log_batch(self._id, params=params[start : start + 100])
        state.keep(id=self._id)

    def log(self, rows: list[Row]) -> None:
        from mlflow.entities import Metric, RunTag

        for row in rows:
            stamp = round(1000 * (row.time or time.time()))
            new = {n: v for n, v in row.values.items() if (n, row.step) not in self._recorded}
            metrics = [Metric(name, value, stamp, row.step) for name, value in new.items()]
            text = "\n".join(row.warnings)[:MLFLOW_LONGEST]
            tags = [RunTag(f"warning.{row.step}", text)] if text else []
            self._client.log_batch(self._id, metrics=metrics, tags=tags)
            self._recorded |= {(name, row.step) for name in new}

    def report(self, step: int, page: Path, pictures: list[Picture]) -> None:
        self._client.log_artifact(self._id, str(page))
        with tempfile.TemporaryDirectory() as folder:
            for number, picture in enumerate(pictures, 1):
                Path(folder, f"{number:02d}.png").write_bytes(picture.data)
            self._client.log_artifacts(self._id, folder, "pictures")

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")


class Trackio(_ByStep):
    """trackio, in its own folder of this machine unless its environment variables say where."""

    def __init__(self, directory: RunDirectory, state: State) -> None:
        import trackio

        super().__init__(state)
        if "name" not in state.values:  # it resumes by name, so that has to be unique
            state.keep(name=f"{directory.path.resolve().name}-{uuid4().hex[:8]}")
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=state.values["name"],
            config=directory.config(),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def _shown(self, page: str, pictures: list[Picture]) -> dict[str, Any]:
        import trackio

        shown: dict[str, Any] = {"report/page": trackio.Html(page)}
        for number, picture in enumerate(pictures, 1):
            shown[f"report/{number:02d}"] = trackio.Image(picture.image(), caption=picture.alt)
        return shown

    def close(self, finished: bool) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[[RunDirectory, State], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
    "trackio": Trackio,
}
