"""What is done with a pair or a fault in a process of its own; each gives what goes into a line of JSON."""

import contextlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.ports.scoring import score

Found = dict[str, Any]
_LIBRARIES = "tensorflow keras keras-hub zeromodels kyolo torch torchvision timm transformers ultralytics"


def write_checkpoint(name: str, folder: Path) -> Found:
    """The file that the other tasks read."""
    from benchmarks.ports import pairs

    return {"checkpoint": str(pairs.write_checkpoint(name, folder))}


def truth(name: str, checkpoint: Path) -> Found:
    """The library's own converter beside torch."""
    from benchmarks.ports.port import torch_first

    torch_first()
    from benchmarks.ports.truth import measure

    return measure(name, checkpoint)


def match(name: str, checkpoint: Path) -> Found:
    """A match with both networks."""
    return _matched(name, checkpoint, _place("torch_of", name), _place("inputs_of", name))


def file(name: str, checkpoint: Path) -> Found:
    """A match with the file alone, where torch's code is not there."""
    return _matched(name, checkpoint, None, None)


def _matched(name: str, checkpoint: Path, torch: str | None, inputs: str | None) -> Found:
    import converter
    from benchmarks.ports.pairs import read_checkpoint
    from benchmarks.ports.truth import Filled

    began = time.monotonic()
    found = converter.match(torch, _place("keras_of", name), inputs, checkpoint=str(checkpoint))
    seconds, memory = time.monotonic() - began, _memory()
    filled = Filled(name, checkpoint)
    # A link may name a tensor as the file does or as the module does: they are the same tensors.
    tensors = {**read_checkpoint(checkpoint, "live"), **read_checkpoint(checkpoint)}
    result = score(found.links, tensors, filled.built, filled.values)
    sizes = [sum(value.nbytes for value in one.values()) for one in (read_checkpoint(checkpoint), filled.built)]
    return {
        **asdict(result),
        "left": found.left,
        "notes": list(found.notes),
        "match_seconds": seconds,
        "memory": memory,
        "models": sum(sizes),
    }


def planted(name: str, checkpoint: Path) -> Found:
    """How far a fault moves the outputs, over the largest value; no audit is asked."""
    from benchmarks.ports.faults import FAULTS
    from benchmarks.ports.pairs import inputs_of
    from benchmarks.ports.truth import Filled, nearest, run_keras

    fault = FAULTS[name]
    model = Filled(fault.port, checkpoint).model
    right = run_keras(model, inputs_of(fault.port))
    wrong = run_keras(fault.change(model) or model, inputs_of(fault.port))
    errors = [nearest([one], other) for one, other in zip(right, wrong, strict=True)]
    return {"moved": max(error for error in errors if error is not None)}


def audit(name: str, checkpoint: Path) -> Found:
    """The findings in a port as its library's converter fills it, or with a fault in it."""
    import converter
    from benchmarks.ports.faults import FAULTS
    from benchmarks.ports.truth import Filled

    fault = FAULTS.get(name)
    port = fault.port if fault else name
    model = Filled(port, checkpoint).model
    if fault:
        model = fault.change(model) or model
    began = time.monotonic()
    findings = converter.audit(_place("torch_of", port), model, _place("inputs_of", port), str(checkpoint))
    return {
        "findings": [
            {word: str(getattr(one, word)) for word in ("layer", "what", "cause", "size")} for one in findings
        ],
        "audit_seconds": time.monotonic() - began,
        "memory": _memory(),
    }


def page(name: str, checkpoint: Path) -> Found:
    """What the command says of a port as its library's converter fills it, from the file of its weights."""
    from benchmarks.ports.pairs import torch_of
    from benchmarks.ports.port import torch_first
    from benchmarks.ports.truth import Filled

    torch_first()
    module = torch_of(name)
    model = Filled(name, checkpoint).model
    weights = checkpoint.with_suffix(".weights.h5")
    model.save_weights(weights)
    sides = ("--torch", "torch_of", "--keras", "keras_of", "--inputs", "inputs_of")
    words = [one if one.startswith("--") else _place(one, name) for one in sides]
    command = [sys.executable, "-m", "cli", "verify", str(checkpoint), str(weights), *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.stdout:
        return {"failed": (done.stderr.strip().splitlines() or ["it said nothing"])[-1]}
    said: Found = json.loads(done.stdout)
    return {**said, "torch": _class(module), "keras": _class(model), "versions": _versions()}


def _class(network: Any) -> str:
    """Library and class."""
    return f"{type(network).__module__.partition('.')[0]} {type(network).__name__}"


def _versions() -> dict[str, str]:
    found = {}
    for package in _LIBRARIES.split():
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _place(function: str, name: str) -> str:
    return f"benchmarks.ports.pairs:{function}?name={name}"


def _memory() -> dict[str, int]:
    """Bytes at the peak, of this process and of the largest that it started."""
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "parent": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "child": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit,
    }


TASKS: dict[str, Callable[[str, Path], Found]] = {
    "checkpoint": write_checkpoint,
    "truth": truth,
    "match": match,
    "file": file,
    "planted": planted,
    "audit": audit,
    "page": page,
}
