"""Read changed files until one is not refused as documented.

    python tests/fuzz/run.py [READER ...] [--inputs 100000] [--seconds 600] [--start 0]

Each reader gets so many inputs, or so much time, in a process of its own with 1 GB of memory more
than it has at its start. What is no ValueError or OSError that names its file, takes over 5 s of
CPU time or ends the process is printed with its number: `--start NUMBER --inputs 1` reads that
input again.
"""

import argparse
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # a script too, so this is no package
from mutations import changed
from readers import READERS, Prepared

SECONDS, MEMORY = 5.0, 1 << 30  # for one input, of CPU time
DOCUMENTED = (ValueError, OSError)


class Slow(BaseException):
    """An input took too long."""


class Fuzzed:
    """A reader, its valid files, and the folder in which they are changed."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        prepared: Prepared = READERS[name](folder)
        self.read = prepared.read
        self.files = {file: (folder / file).read_bytes() for file in prepared.files}
        self.read()  # they are valid

    def attempt(self, rng: random.Random) -> bool:
        """Read a changed file. Returns: whether it was refused. Raises what is not documented."""
        name = rng.choice(list(self.files))
        path, content = self.folder / name, changed(name, self.files[name], rng)
        path.write_bytes(content)
        try:
            self.read()
        except DOCUMENTED as error:
            if isinstance(error, UnicodeError) or not _names(error, path):
                raise AssertionError(
                    f"no file is named: {type(error).__name__}: {error}"
                ) from error
            return True
        finally:
            path.write_bytes(self.files[name])
        return False


def _names(error: BaseException, path: Path) -> bool:
    """Whether the message has the name of the file, of one beside it or of its folder."""
    return path.name in str(error) or str(path.parent) in str(error)


def where(error: BaseException) -> str:
    """Describe an error by its kind and the last line of ours that it came through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/beit/" in frame.filename] or list(frames)
    place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
    cause = error.__cause__
    if isinstance(error, AssertionError) and cause is not None:
        return f"unnamed {type(cause).__name__} {where(cause).partition(' at ')[2]}"
    return f"{type(error).__name__} at {place}"


def timed(read: Callable[[], object]) -> Callable[[], object]:
    """Raise SIGPROF after so many seconds of CPU time."""

    def within() -> object:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            return read()
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    return within


def child(name: str, numbers: range, until: float, place: mmap.mmap, output: int) -> None:
    """Read inputs, and write each kind of finding once."""
    # place: the number of the input, the time when it began, the number of the next one
    warnings.simplefilter("ignore")
    sys.stdout = sys.stderr = open(os.devnull, "w")
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-", dir="/dev/shm"))
    found: Counter[str] = Counter()

    def stop(*_: object) -> None:
        raise Slow

    signal.signal(signal.SIGPROF, stop)
    try:
        fuzzed = Fuzzed(name, folder)
        fuzzed.read = timed(fuzzed.read)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * mmap.PAGESIZE + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for number in numbers:
            if time.monotonic() > until:
                break
            struct.pack_into("qd", place, 0, number, time.monotonic())
            try:
                refused = fuzzed.attempt(random.Random(f"{name} {number}"))
                found["refused" if refused else "read"] += 1
            except (Exception, Slow) as error:
                kind = where(error)
                found[kind] += 1
                if found[kind] == 1:
                    text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                    os.write(output, f"  {name} {number}: {kind}: {text}\n".encode())
            struct.pack_into("q", place, 16, number + 1)
    except BaseException:
        os.write(output, traceback.format_exc().encode())
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    counts = ", ".join(f"{count} {kind}" for kind, count in found.most_common())
    os.write(output, f"  {name}: {counts}\n".encode())


def fuzz(name: str, numbers: range, seconds: float) -> tuple[int, list[str]]:
    """Read inputs of one reader. Returns: how many there were; the findings, a line each."""
    until, start, lines = time.monotonic() + seconds, numbers.start, list[str]()
    while start < numbers.stop and time.monotonic() < until:
        place = mmap.mmap(-1, 24)
        struct.pack_into("qdq", place, 0, start - 1, time.monotonic(), start)
        read, write = os.pipe()
        process = os.fork()
        if process == 0:
            code = 1
            try:
                os.close(read)
                child(name, range(start, numbers.stop), until, place, write)
                code = 0
            finally:
                os._exit(code)
        os.close(write)
        status = _waited(process, place)
        with os.fdopen(read, "rb") as stream:
            lines += stream.read().decode(errors="replace").splitlines()
        number, _, start = struct.unpack("qdq", place[:24])
        if status == 0:
            break
        if start <= number:  # it ended in this input
            lines.append(f"  {name} {number}: the process ended with status {status}")
            start = number + 1
        else:
            break
    return start - numbers.start, lines


def _waited(process: int, place: mmap.mmap) -> int:
    """Wait for a process; end it if an input takes twice its time, in code that no signal ends."""
    late = 0
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        _, began = struct.unpack_from("qd", place)
        late = late + 1 if time.monotonic() - began > 60 else 0  # its files are made first
        if late > 3:  # not a number that was being written
            os.kill(process, signal.SIGKILL)
        time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("readers", nargs="*", help=f"some of {', '.join(READERS)}; all by default")
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--start", type=int, default=0)
    options = parser.parse_args()
    findings = 0
    for name in options.readers or READERS:
        began = time.monotonic()
        numbers = range(options.start, options.start + options.inputs)
        count, lines = fuzz(name, numbers, options.seconds)
        seconds = time.monotonic() - began
        findings += len(lines) - 1
        print(f"{name}: {count} inputs in {seconds:.0f} s", *lines, sep="\n", flush=True)
    sys.exit(findings > 0)


if __name__ == "__main__":
    main()
