"""The lossless proof, that no bit was lost on the way into the file."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import h5py
import numpy as np

from converter.checkpoints.checkpoint import Checkpoint
from converter.checkpoints.tensors import FLOATS, Scratch
from converter.errors import ConversionError, printable
from converter.files.weights_file import THREADS, cast, dense, laid_out, narrowed, read
from converter.kinds.axes import relaid
from converter.naming import listed
from converter.planning.plan import Plan
from converter.planning.reading import mapping_of
from converter.planning.steps import Step
from converter.report import Lossless
from converter.rounding import UNITS
from tf_models.runtime.weights_format import WeightsError, datasets
from tf_models.runtime.weights_format import stored_dtype as dtype_of

_PIECE = 1 << 18  # values


def lossless(
    path: Path,
    plan: Plan,
    checkpoint: Checkpoint,
    dtype: str | None = None,
    progress: Callable[[int], None] = lambda nbytes: None,
    back: Literal["", "restored", "trained"] = "",
) -> Lossless:
    """Read the file back, undo the layout, and compare every tensor bit for bit with the checkpoint's.

    `dtype` is what the file must hold (None: what it does hold). Values that were narrowed on the way are compared with
    the checkpoint's, narrowed. `back`: the checkpoint was made of the file, so that tensors that were folded are
    rounded, and may fold to a neighbour (`Fold.apart`); and if the values were trained, so are all that have a narrower
    dtype there.

    Raises:
        ConversionError: the file does not hold exactly the model's variables, in shape and dtype.
    """
    home = plan.places
    with h5py.File(path, "r") as file:
        held = dict(datasets(file))
        problems = [f"{name} is not in it" for name, place in home.items() if place not in held]
        problems += [f"{place} is no variable of the model" for place in held if place not in set(home.values())]
        for name, place in home.items():
            dataset = held.get(place)
            if dataset is None:
                continue
            found = dtype_of(dataset)
            if dataset.shape != plan.variables[name]:
                problems.append(f"{name} has shape {dataset.shape}, not {plan.variables[name]}")
            elif found not in FLOATS or (dtype is not None and found != dtype):
                problems.append(f"{name} has dtype {found}")
            elif found != "bfloat16" and "dtype" in dataset.attrs:  # Keras would read it, however long it claims to be
                problems.append(f"{name} is marked with a dtype, as only bfloat16 is")
        if problems:
            raise ConversionError(
                f"{printable(path.name)} does not hold {plan.pair.name}'s variables: {listed(problems, 4, '; ')}"
            )

        scratch = Scratch()

        def same(step: Step) -> tuple[list[str], int]:
            stored = dtype_of(held[home[step.targets[0].path]])
            values: list[np.ndarray] = []
            for index, target in enumerate(step.targets):
                values.append(scratch.array(f"stored {index}", target.shape, FLOATS[stored]))
                if values[-1].size:
                    held[home[target.path]].read_direct(values[-1])
            tensors = read(step, checkpoint, scratch)
            nbytes = sum(value.nbytes for value in values)
            if step.leaf.computed:  # which has no way back to the tensors' own bits
                folded, _ = laid_out(step, tensors, stored)
                apart = step.leaf.fold.apart if back and step.leaf.fold else 0
                pairs = zip(values, map(np.ascontiguousarray, folded), strict=True)
                equal = all(_equal_bits(*both, apart) for both in pairs)
                return ([] if equal else [step.name]), nbytes
            differing = []
            for source, tensor, undone in zip(step.sources, tensors, step.undo(values), strict=True):
                found = dense(undone, scratch)
                if back == "trained" and tensor.dtype.itemsize < found.dtype.itemsize:
                    found, expected = narrowed(found, source.entry.dtype, source.name), tensor
                else:
                    expected, _ = cast(tensor, stored, source.name)
                if found.shape != expected.shape or not _equal_bits(found, expected):
                    differing.append(source.name)
            return differing, nbytes

        differing: list[str] = []
        nbytes = 0
        with ThreadPoolExecutor(THREADS) as pool:
            for wrong, count in pool.map(same, plan.steps):
                nbytes += count
                progress(count)
                differing += wrong
    unequal, equal = _dropped(plan, checkpoint)
    return Lossless(plan.tensors, nbytes, tuple(differing), tuple(unequal), tuple(equal))


def _dropped(plan: Plan, checkpoint: Checkpoint) -> tuple[list[str], list[str]]:
    """Of the tensors that TensorFlow computes itself: what is not as it says, in words; and the names of the rest.

    A table that is computed, of sines say, may be off by as many roundings as libraries differ by.
    """
    mapping = mapping_of(plan.pair, plan.config)
    entries = plan.entries
    unequal, equal = [], []

    def torchs(name: str) -> np.ndarray:
        values, axes = checkpoint.read(entries[name]), plan.dialect.axes(name)
        return np.array(values if axes is None else relaid(values, axes))

    for name, wanted in mapping.equals.items():
        if name not in plan.unused:
            continue
        values = torchs(name)
        if isinstance(wanted, str):
            if wanted not in entries:
                unequal.append(f"{printable(entries[name].name)} should equal {printable(wanted)}, which is not there")
                continue
            other = torchs(wanted)
            same = values.shape == other.shape and values.dtype == other.dtype and values.tobytes() == other.tobytes()
            shown = printable(entries[wanted].name)
        else:
            other = np.asarray(wanted)
            near = (
                8 * UNITS["float32"] * np.abs(other).max(initial=0) if other.dtype.kind == "f" and other.ndim else 0.0
            )
            same = other.shape in ((), values.shape) and bool((np.abs(values - other) <= near).all())
            shown = str(wanted) if other.ndim == 0 else "the table that TensorFlow computes"
        if same:
            equal.append(name)
        else:
            unequal.append(f"{printable(entries[name].name)} is dropped, but does not equal {shown}")
    return unequal, equal


def _equal_bits(some: np.ndarray, other: np.ndarray, apart: int = 0) -> bool:
    """Whether they are, or are no more than so many units in the last place apart.

    Compared in pieces, so that what the comparison makes stays in the cache.
    """
    ours, theirs = (values.reshape(-1).view(f"i{values.dtype.itemsize}") for values in (some, other))
    starts = range(0, ours.size, _PIECE)
    pieces = ((ours[start : start + _PIECE], theirs[start : start + _PIECE]) for start in starts)
    return all(
        np.array_equal(mine, one) or (apart > 0 and bool((np.abs(_place(mine) - _place(one)) <= apart).all()))
        for mine, one in pieces
    )


def _place(bits: np.ndarray) -> np.ndarray:
    """Of floats, given by their bits: a number that counts them in their order."""
    size = (bits & np.iinfo(bits.dtype).max).astype(np.int64)
    return np.where(bits < 0, -size, size)


def stored_dtype(path: Path, plan: Plan) -> str:
    """The dtype that every variable in the file has.

    Raises:
        ConversionError: not an HDF5 file, or of several dtypes.
    """
    try:
        with h5py.File(path, "r") as file:
            found = {dtype_of(dataset) for _, dataset in datasets(file)}
    except (OSError, WeightsError):
        raise ConversionError(f"{printable(str(path), 160)} is not a readable HDF5 file") from None
    if len(found) != 1 or not found <= set(FLOATS):
        raise ConversionError(
            f"{printable(str(path), 160)} does not hold {plan.pair.name}'s variables in one float dtype"
        )
    return found.pop()
