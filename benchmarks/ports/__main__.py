"""Ports that others made, as the judge of `match` and `audit`.

python -m benchmarks.ports truth       # the libraries' own converters beside torch, without ours
python -m benchmarks.ports match       # both networks and a checkpoint
python -m benchmarks.ports file        # a checkpoint and the Keras model alone
python -m benchmarks.ports planted     # planted faults: how far each moves the outputs
python -m benchmarks.ports audit       # planted faults, and right ports
python -m benchmarks.ports page        # docs/ports.md: what `weightbridge verify` says of public ports

Each pair has processes of its own. With --json the results are lines of FILE; what is there already is not run again.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.ports import page, tables
from benchmarks.ports.faults import FAULTS
from benchmarks.ports.pairs import PORTS
from benchmarks.ports.port import settle
from benchmarks.ports.tasks import TASKS

_LONGEST = 600  # seconds for a pair
_RIGHT = 20  # ports that are audited as they are
_TABLES = {
    "truth": tables.truth,
    "match": tables.match,
    "file": tables.match,
    "planted": tables.planted,
    "audit": tables.audit,
    "page": page.page,
}


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ports",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("task", choices=[*_TABLES])
    parser.add_argument("--only", action="append", help="pairs and faults whose name has this in it; =NAME is one")
    parser.add_argument("--held-out", choices=("with", "without", "alone"), default="with")
    parser.add_argument("--json", type=Path, help="write what was found, and go on with it")
    if sys.argv[1:2] == ["worker"]:
        _work(*sys.argv[2:])
        return
    given = parser.parse_args()
    print(_TABLES[given.task](run(given)))


def run(given: argparse.Namespace) -> list[dict[str, Any]]:
    """What was found of each pair or fault, in order."""
    known: dict[str, dict[str, Any]] = {}
    if given.json and given.json.exists():
        known = {one["name"]: one for one in map(json.loads, given.json.read_text().splitlines())}
    found = []
    for name in chosen(given):
        if name not in known:
            known[name] = alone(given.task, name)
            outcome = known[name].get("failed", "done")
            print(f"{name}: {outcome}, {known[name]['seconds']:.0f} s", file=sys.stderr, flush=True)
            if given.json:
                with given.json.open("a") as file:
                    file.write(json.dumps(known[name]) + "\n")
        found.append(known[name])
    return found


def chosen(given: argparse.Namespace) -> Iterator[str]:
    """The names that the arguments say."""
    names = list(PORTS)
    if given.task in ("planted", "audit"):
        right = [name for name in PORTS if PORTS[name].kind == "equal" and not PORTS[name].heldout]
        # The ports with faults first: what is found in them as they are is no finding of the fault.
        ports = [*dict.fromkeys(fault.port for fault in FAULTS.values())]
        names = [*ports, *(name for name in right if name not in ports)][:_RIGHT] if given.task == "audit" else []
        names += FAULTS
    elif given.task == "page":
        names = [name for name in PORTS if PORTS[name].kind in ("equal", "near") and not PORTS[name].heldout]
    for name in names:
        port = PORTS[FAULTS[name].port if name in FAULTS else name]
        if given.held_out != "with" and port.heldout != (given.held_out == "alone"):
            continue
        if not given.only or any(word[1:] == name if word[0] == "=" else word in name for word in given.only):
            yield name


def alone(task: str, name: str) -> dict[str, Any]:
    """What processes of their own find; "failed" has the error of one that ends with one, or takes too long."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = _process("checkpoint", FAULTS[name].port if name in FAULTS else name, folder)
        if "failed" not in found:
            found = _process(task, name, found["checkpoint"])
    return {"name": name, **found, "seconds": time.monotonic() - began}


def _process(task: str, name: str, place: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "found.json")
        command = [sys.executable, "-m", "benchmarks.ports", "worker", task, name, place, str(result)]
        try:
            done = subprocess.run(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=_LONGEST
            )
        except subprocess.TimeoutExpired:
            return {"failed": f"took longer than {_LONGEST} s"}
        if result.exists():
            found: dict[str, Any] = json.loads(result.read_text())
            return found
        lines = done.stderr.strip().splitlines()
        return {"failed": lines[-1] if lines else f"ended with {done.returncode}"}


def _work(task: str, name: str, place: str, result: str) -> None:
    """One task, in this process."""
    settle()
    Path(result).write_text(json.dumps(TASKS[task](name, Path(place))))


if __name__ == "__main__":
    main()
