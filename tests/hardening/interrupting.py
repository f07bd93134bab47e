"""Conversions that are killed, run out of disk, or run two at a time; prints what became of them as JSON.

    python -m tests.hardening.interrupting {kill | moments | full | writers} ROUNDS [SEED]

One process imports everything, and forks for each conversion, so that a round takes a fraction of a second. It never
runs TensorFlow itself: a fork of a running TensorFlow would hang.
"""

import contextlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch  # before TensorFlow

import cli
import converter
from converter.console import signals
from tests.support import converted

for _module in ("files.weights_file", "proof.lossless"):
    import_module(f"converter.{_module}")  # what the forked conversions would import, once for all

SIGNALS = {"SIGKILL": -signal.SIGKILL, "SIGINT": signals.INTERRUPTED, "SIGTERM": signals.TERMINATED}


class Child:
    """A forked process that runs the `convert` command; its standard error is kept."""

    def __init__(self, *arguments: object, before: Callable[[], Any] = lambda: None):
        reading, writing = os.pipe()
        # Until the command handles it: a KeyboardInterrupt would leave `main` in the child too, and remove its folder.
        kept = signal.signal(signal.SIGINT, signal.SIG_DFL)
        self.pid, self._error = os.fork(), reading
        if self.pid == 0:
            code = 99
            with contextlib.suppress(SystemExit):
                os.dup2(writing, 2)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                before()
                try:
                    cli.convert.main([*map(str, arguments)], prog_name="convert")
                except SystemExit as end:
                    code = int(end.code or 0)
            os._exit(code)
        signal.signal(signal.SIGINT, kept)
        os.close(writing)

    def wait(self) -> tuple[int, str]:
        """Exit code (negative: the signal that ended it), and standard error."""
        with os.fdopen(self._error) as file:
            text = file.read()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), text


class Bench:
    """Two checkpoints, what each becomes, and an output that both are converted to."""

    def __init__(self, folder: Path):
        converter.register(converted.PAIR)
        self.folder = folder / "output"
        self.output = self.folder / "w.weights.h5"
        self.folder.mkdir()
        self.sources = [folder / "a.pth", folder / "b.pth"]
        self.results = []
        self.took = 0.0
        for seed, source in enumerate(self.sources):
            torch.save(converted.state(seed), source)
            began = time.monotonic()
            assert self.start(seed).wait() == (0, "")
            self.took = time.monotonic() - began
            self.results.append(self.output.read_bytes())
        assert self.results[0] != self.results[1]
        assert self.start(0).wait() == (0, "")
        assert self.output.read_bytes() == self.results[0], "the same input does not give the same bytes"

    def start(self, which: int, *more: object, overwrite: bool = True, **options: Any) -> Child:
        command = (self.sources[which], "--model", "stack", "--verify", "lossless", "-o", self.output)
        return Child(*command, *(["--overwrite"] if overwrite else []), *more, **options)

    def left(self) -> list[str]:
        """What stands beside the output."""
        return [name for name in os.listdir(self.folder) if name != self.output.name]


def one_line(text: str) -> bool:
    return text.startswith("error: ") and text.endswith("\n") and text[:-1].isprintable() and len(text) <= 501


def kill(bench: Bench, rounds: int, rng: random.Random) -> Counter:
    """Every signal at random moments of a conversion that replaces an output."""
    seen: Counter[str] = Counter()
    for number in range(rounds):
        name = list(SIGNALS)[number % len(SIGNALS)]
        bench.output.write_bytes(bench.results[0])
        child = bench.start(1)
        after = rng.uniform(0, 1.1 * bench.took)
        time.sleep(after)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, getattr(signal, name))
        code, text = child.wait()
        content = bench.output.read_bytes()
        seen[f"{name}: ended"] += code == SIGNALS[name]
        seen[f"{name}: too late"] += code == 0
        # A signal that comes before the command handles it ends the process as signals do.
        early = code == -getattr(signal, name) and name != "SIGKILL"
        seen[f"{name}: before the command began"] += early
        wrong = code not in (SIGNALS[name], 0) and not early
        seen["wrong exit code"] += wrong
        if wrong:
            print(f"{name} at {after:.3f} s: exit code {code}, {text!r}", file=sys.stderr)
        seen["wrong message"] += code in (signals.INTERRUPTED, signals.TERMINATED) and not one_line(text)
        seen["wrong files"] += content not in bench.results or (code == 0 and content != bench.results[1])
        seen["wrong files"] += code in (signals.INTERRUPTED, signals.TERMINATED) and content != bench.results[0]
        seen["half a file left in its folder"] += bool(bench.left())
        seen["left by what could clean up"] += bool(bench.left()) and name != "SIGKILL" and not early
        if bench.left():
            assert bench.start(1).wait() == (0, "")
            seen["left after the next run"] += bool(bench.left())
    return seen


def moments(bench: Bench, rounds: int, _rng: random.Random) -> Counter:
    """A signal while the folder is made, when the output has taken its place, and while the folder is removed."""
    seen: Counter[str] = Counter()

    def before(name: str, number: int, limit: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        real = getattr(os, name)

        def signalled(*arguments: Any, **options: Any) -> None:
            real(*arguments, **options)
            setattr(os, name, real)
            signal.raise_signal(number)

        setattr(os, name, signalled)

    half, whole = len(bench.results[1]) // 2, resource.RLIM_INFINITY
    for _ in range(rounds):
        for name in ("SIGINT", "SIGTERM"):
            for call, limit, late in (("mkdir", whole, False), ("replace", whole, True), ("unlink", half, False)):
                bench.output.write_bytes(bench.results[0])
                number = getattr(signal, name)
                code, text = bench.start(1, before=lambda c=call, n=number, m=limit: before(c, n, m)).wait()
                seen[f"{call}: {code}"] += 1
                seen["wrong exit code"] += code != (0 if late else SIGNALS[name])
                seen["wrong message"] += not late and not one_line(text)
                seen["wrong files"] += bench.output.read_bytes() != bench.results[late]
                seen["left"] += bool(bench.left())
    return seen


def full(bench: Bench, rounds: int, _rng: random.Random) -> Counter:
    """A limit on the size of files, which is to a process what a full disk is, at every stage of writing."""
    seen: Counter[str] = Counter()
    size = len(bench.results[1])
    for number in range(rounds):
        limit = size * number // rounds
        code, text = bench.start(1, before=lambda n=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (n, n))).wait()
        seen["refused"] += code == 1
        seen["wrong message"] += not one_line(text)
        seen["wrong files"] += bench.output.read_bytes() != bench.results[0]
        seen["left"] += bool(bench.left())
    return seen


def writers(bench: Bench, rounds: int, _rng: random.Random) -> Counter:
    """Two conversions at once to one output; every second time only the first may write it."""
    seen: Counter[str] = Counter()
    for number in range(rounds):
        overwrite = number % 2 == 0
        bench.output.unlink()
        children = [bench.start(which, overwrite=overwrite) for which in (0, 1)]
        ends = [child.wait() for child in children]
        codes = [code for code, _ in ends]
        content = bench.output.read_bytes()
        seen["both wrote"] += codes == [0, 0]
        seen["one wrote, the other was told"] += sorted(codes) == [0, 1] and any("exists" in text for _, text in ends)
        seen["wrong exit codes"] += codes != [0, 0] if overwrite else sorted(codes) != [0, 1]
        seen["wrong files"] += content not in bench.results
        seen["wrong files"] += not overwrite and content != bench.results[codes.index(0)]
        seen["left"] += bool(bench.left())
    return seen


def main(what: str, rounds: str, seed: str = "0") -> None:
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        run = {"kill": kill, "moments": moments, "full": full, "writers": writers}[what]
        print(json.dumps({"rounds": int(rounds), **run(bench, int(rounds), random.Random(seed))}))


if __name__ == "__main__":
    main(*sys.argv[1:])
