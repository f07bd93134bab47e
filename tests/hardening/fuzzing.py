"""Mutated files through the public API, in one process; hypothesis chooses the mutations, and simplifies what fails.

    python -m tests.hardening.fuzzing [--mutants 100000] [--seed 0] [zip legacy safetensors index h5 ...]

Of every mutant one of three things may come: it is refused by a ConversionError or WeightsError of one printable line;
it is accepted and holds what the original holds; or, in the formats that have no checksums (legacy and safetensors), it
is accepted and holds what the format's own library reads from it, or where that refuses it, what a second reader does
that shares no code with the converter's. Anything else is printed and ends with exit code 1.
"""

import argparse
import contextlib
import json
import random
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import safetensors
import safetensors.torch
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import converter
import tf_models
from converter.checkpoints.checkpoint import Checkpoint
from converter.checkpoints.tensors import FLOATS
from converter.files.weights_file import _lay_out, sign
from tests.support import second_reader
from tf_models.runtime.weights_format import check, digest

Values = dict[str, Any]
INTERESTING = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)


def state() -> dict[str, torch.Tensor]:
    """Tensors of every convertible dtype, with a view, a tied weight and a scalar."""
    rng = torch.Generator().manual_seed(1)
    base = torch.randn(6, 5, generator=rng)
    return {
        "a.weight": base,
        "a.bias": torch.randn(6, generator=rng).half(),
        "b.weight": base.T,
        "b.tied": base,
        "c": torch.randn(4, generator=rng).bfloat16(),
        "d": torch.tensor(0.5, dtype=torch.float64),
        "steps": torch.tensor(7),
    }


def mutated(data: bytes, rng: random.Random) -> bytes:
    """`data` with one to four changes of the sorts that break readers."""
    whole = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        place = rng.randrange(max(1, len(whole)))
        length = rng.choice((1, 2, 4, 8, 16, 64, 300))
        kind = rng.randrange(9)
        if kind == 0 and whole:
            whole[place] ^= 1 << rng.randrange(8)
        elif kind == 1 and whole:
            whole[place] = rng.randrange(256)
        elif kind == 2:
            size = rng.choice((1, 2, 4, 8))
            number = rng.choice(INTERESTING) & ((1 << 8 * size) - 1)
            whole[place : place + size] = number.to_bytes(size, "little")
        elif kind == 3:
            del whole[place : place + length]
        elif kind == 4:
            whole[place:place] = whole[place : place + length]
        elif kind == 5:
            other = rng.randrange(max(1, len(whole)))
            whole[place : place + length] = whole[other : other + length]
        elif kind == 6:
            whole[place:place] = rng.randbytes(length)
        elif kind == 7:
            del whole[place:]
        else:
            whole[place : place + length] = bytes(length)
    return bytes(whole)


def read(path: Path) -> Values:
    """Name -> dtype, shape and bytes of every float tensor, as the converter reads it."""
    found = {}
    with Checkpoint(path) as checkpoint:
        for entry in checkpoint.entries():
            if entry.dtype in FLOATS:
                if entry.nbytes > 1 << 20:
                    raise converter.ConversionError("larger than any model wants it")  # as the plan does
                found[f"{entry.key}/{entry.name}"] = (entry.dtype, entry.shape, checkpoint.read(entry).tobytes())
    return found


def library(path: Path) -> Values | None:
    """The same as torch or safetensors reads it; None where that fails."""
    try:
        if path.read_bytes()[8:9] == b"{":
            found: Any = safetensors.torch.load_file(path)
        else:
            found = torch.load(path, weights_only=True, mmap=False)
    except Exception:
        return None
    return {
        f"/{name}": (
            str(value.dtype).removeprefix("torch."),
            tuple(value.shape),
            value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(),
        )
        for name, value in found.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    }


class Format:
    """A sort of file: its original, which is mutated, and how it is read through the public API."""

    def __init__(self, folder: Path, file: str, data: bytes, ask: Callable[[Path], Values], checksums: bool = True):
        self.path, self.data, self.ask, self.checksums = folder / file, data, ask, checksums

    def judge(self, mutant: bytes, original: Values) -> str:
        """What came of the mutant: refused, equal, as the library or the second reader reads it; or WRONG and what."""
        self.path.write_bytes(mutant)
        try:
            found = self.ask(self.path)
        except (converter.ConversionError, tf_models.WeightsError) as error:
            text = str(error)
            return "refused" if text.isprintable() and 10 < len(text) <= 490 else f"WRONG message {text[:200]!r}"
        except Exception as error:
            return f"WRONG {type(error).__name__}: {str(error)[:200]}"
        if found == original:
            return "equal"
        if self.checksums:
            return "WRONG values"
        theirs = library(self.path)
        if theirs is None:
            try:
                second = second_reader.read(self.path)
            except Exception as error:
                return f"WRONG to be read, say the library and the second reader: {type(error).__name__}: {error}"
            return "as the second reader reads it" if found == second else "WRONG values, and other than the second's"
        return "as the library reads it" if found == theirs else "WRONG values, and other than the library's"


def checkpoint_format(folder: Path, name: str) -> Format:
    path = folder / "original"
    if name == "safetensors":
        tensors = {key: value.contiguous().clone() for key, value in state().items()}
        safetensors.torch.save_file(tensors, path, {"format": "pt"})
    else:
        torch.save(state(), path, _use_new_zipfile_serialization=name == "zip")
    return Format(folder, "mutant", path.read_bytes(), read, name == "zip")


def index_format(folder: Path) -> Format:
    names = list(state())
    shards = {"one.safetensors": names[:4], "two.safetensors": names[4:]}
    for file, part in shards.items():
        safetensors.torch.save_file({name: state()[name].contiguous().clone() for name in part}, folder / file)
    table = {name: file for file, part in shards.items() for name in part}
    text = json.dumps({"metadata": {"total_size": 1}, "weight_map": table}, indent=1)
    return Format(folder, "mutant.index.json", text.encode(), read)


def h5_format(folder: Path) -> Format:
    """A file as the converter writes it, of a few layers in nested groups."""
    path = folder / "mutant.weights.h5"
    rng = np.random.default_rng(1)
    shapes = {f"layers/dense{end}/vars/{i}": (4, 3)[: 2 - i] for end in ("", "_1", "_2") for i in (0, 1)}
    _lay_out(path, shapes, "float32")
    digests = {}
    with h5py.File(path, "r+") as file:
        for place, shape in shapes.items():
            file[place][...] = rng.standard_normal(shape).astype(np.float32)
            digests[place] = digest(place, file[place][()])
    about = {"format": 1, "version": "0", "model": "stack", "config": {"width": 3}, "dtype": "float32", "proof": {}}
    sign(path, about, digests)

    def ask(path: Path) -> Values:
        check(path, shapes)
        rows = converter.inspect(path)
        with h5py.File(path, "r") as file:
            return {row.name: (row.dtype, row.shape, file[row.name][()].tobytes()) for row in rows}

    return Format(folder, path.name, path.read_bytes(), ask)


FORMATS = ("zip", "legacy", "safetensors", "index", "h5")


def fuzz(name: str, mutants: int, first: int) -> bool:
    """Try so many mutants of one format; print what came of them, and whether all was right."""
    seen: Counter[str] = Counter()
    slowest = 0.0
    wrong = ""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        makers = {"index": index_format, "h5": h5_format}
        one = makers[name](folder) if name in makers else checkpoint_format(folder, name)
        one.path.write_bytes(one.data)
        original = one.ask(one.path)
        assert len(original) >= 6
        began = time.monotonic()

        @seed(first)
        @settings(
            max_examples=mutants,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        @given(st.randoms(use_true_random=False))
        def right(rng: random.Random) -> None:
            nonlocal slowest, wrong
            mutant = mutated(one.data, rng)
            start = time.process_time()
            outcome = one.judge(mutant, original)
            slowest = max(slowest, time.process_time() - start)
            seen[outcome.partition(":")[0]] += 1
            if outcome.startswith("WRONG"):
                kept = Path(tempfile.gettempdir(), f"fuzz-{name}-{first}")
                kept.write_bytes(mutant)  # the last that fails is the simplest
                wrong = f"{outcome}; kept as {kept}"
                raise AssertionError(wrong)

        with contextlib.suppress(AssertionError):
            right()
    counts = ", ".join(f"{count} {outcome}" for outcome, count in seen.most_common())
    total = sum(seen.values())
    print(f"{name}: {total} mutants in {time.monotonic() - began:.0f} s, slowest {slowest:.2f} s: {counts}", flush=True)
    if wrong:
        print(f"  {wrong}", flush=True)
    return slowest < 10 and not wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("formats", nargs="*", default=FORMATS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # the libraries' own, about what they are given here
    good = [fuzz(name, options.mutants, options.seed) for name in options.formats]
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
