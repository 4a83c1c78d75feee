"""Several commands in one process, as the imports of each take longer than the rest of it.

`python -P batch.py SRC STEPS RESULTS`: reads a JSON list of steps,
`{"argv": [...], "copies": [[from, to], ...]}`, runs each as `python -m beit` would and then copies,
and writes `[exit status, standard output, standard error]` of each. SRC must come first on
PYTHONPATH.
"""

import importlib.util
import io
import json
import runpy
import shutil
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path


def run(argv: list[str]) -> tuple[int, str, str]:
    """Run one command. Returns: exit status, standard output and standard error."""
    sys.argv = ["beit", *argv]
    written = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    errors, code = io.StringIO(), 0
    with redirect_stdout(written), redirect_stderr(errors):
        try:
            runpy.run_module("beit", run_name="__main__")
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else int(left.code is not None)
        except Exception:
            traceback.print_exc()
            code = 1
    buffer = written.buffer
    assert isinstance(buffer, io.BytesIO)
    return code, buffer.getvalue().decode(), errors.getvalue()


def main(source: str, steps: str, results: str) -> None:
    found = importlib.util.find_spec("beit")
    assert found is not None and found.origin is not None
    if not Path(found.origin).resolve().is_relative_to(Path(source).resolve()):
        raise SystemExit(f"beit is that of {found.origin}, expected that of {source}")
    done = []
    for step in json.loads(Path(steps).read_text()):
        done.append(run(step["argv"]))
        Path(results).write_text(json.dumps(done))
        for one, other in step["copies"] if done[-1][0] == 0 else []:
            Path(other).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(one, other)


if __name__ == "__main__":
    main(*sys.argv[1:])
