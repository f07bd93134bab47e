"""Ports that others made, as the judge of `match` and `audit`.

python -m benchmarks.ports truth [--only NAME] [--json FILE]    # the library's own converter beside torch

Each pair has a process of its own. With --json the results are lines of FILE; what is there already is not run again.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.ports.port import settle

_LONGEST = 900  # seconds for a pair


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ports", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("truth", help="the library's own converter beside torch")
    worker = commands.add_parser("worker")
    worker.add_argument("task")
    worker.add_argument("name")
    for one in commands.choices.values():
        one.add_argument("--only", action="append", help="pairs whose name has this in it; =NAME is one pair")
        one.add_argument("--held-out", choices=("with", "without", "alone"), default="with")
        one.add_argument("--json", type=Path, help="write what was found, and go on with it")
    given = parser.parse_args()
    if given.command == "worker":
        work(given)
        return
    from benchmarks.ports import tables

    results = run(given)
    print(getattr(tables, given.command)(results))


def run(given: argparse.Namespace) -> list[dict[str, Any]]:
    """What was found of each pair, in order."""
    known: dict[str, dict[str, Any]] = {}
    if given.json and given.json.exists():
        known = {one["name"]: one for one in map(json.loads, given.json.read_text().splitlines())}
    found = []
    for name in chosen(given):
        if name not in known:
            known[name] = alone(given.command, name)
            print(f"{name}: {known[name].get('failed', 'done')}, {known[name]['seconds']:.0f} s", file=sys.stderr)
            if given.json:
                with given.json.open("a") as file:
                    file.write(json.dumps(known[name]) + "\n")
        found.append(known[name])
    return found


def chosen(given: argparse.Namespace) -> list[str]:
    """The names that the arguments say."""
    from benchmarks.ports.pairs import PORTS

    def wanted(name: str) -> bool:
        if given.held_out != "with" and PORTS[name].heldout != (given.held_out == "alone"):
            return False
        return not given.only or any(word[1:] == name if word[0] == "=" else word in name for word in given.only)

    return [name for name in PORTS if wanted(name)]


def alone(task: str, name: str) -> dict[str, Any]:
    """What a process of its own finds; "failed" has the error of one that ends with one, or takes too long."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "found.json")
        command = [sys.executable, "-m", "benchmarks.ports", "worker", task, name, "--json", str(place)]
        began = time.monotonic()
        found: dict[str, Any] = {"name": name}
        try:
            done = subprocess.run(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=_LONGEST
            )
            if place.exists():
                found |= json.loads(place.read_text())
            else:
                lines = done.stderr.strip().splitlines()
                found["failed"] = lines[-1] if lines else f"ended with {done.returncode}"
        except subprocess.TimeoutExpired:
            found["failed"] = f"took longer than {_LONGEST} s"
        return {**found, "seconds": time.monotonic() - began}


def work(given: argparse.Namespace) -> None:
    """One pair, in this process."""
    settle()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from benchmarks.ports import port

    port.torch_first()
    from benchmarks.ports import truth

    with tempfile.TemporaryDirectory() as folder:
        found = {"truth": truth.measure}[given.task](given.name, Path(folder))
    given.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
