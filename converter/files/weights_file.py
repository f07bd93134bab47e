"""Write `.weights.h5`: streaming, with the same bytes for the same input, and with provenance.

Keras says where in the file each variable belongs (`tf_models.runtime.weights_format.places`), HDF5 lays the file out
with room for every variable, and the values go straight to their places, one tensor at a time for each of two threads.
"""

import contextlib
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from converter.checkpoints.checkpoint import Checkpoint
from converter.checkpoints.tensors import FLOATS, Scratch
from converter.errors import ConversionError, printable
from converter.files.atomic import undisturbed
from converter.planning.steps import Step
from tf_models.runtime import weights_format
from tf_models.runtime.weights_format import digest

THREADS = 2
_PIECE = 1 << 20  # bytes written at once: a third of the time of whole tensors, for which the system makes large pages
_BLOCK = 32  # rows of a transposed matrix copied at once: 3.3 GB/s, against 0.8 in one go


@dataclass
class Written:
    """What became of the values on the way into the file.

    Attributes:
        nbytes: bytes of values written.
        narrowed: how many tensors lost precision, and `loss` the largest error this made, relative to the tensor's
            largest value.
        nonfinite: source names of tensors that hold NaN or Inf (only when that was allowed).
        digests: place in the file -> digest of the values there.
    """

    nbytes: int = 0
    narrowed: int = 0
    loss: float = 0.0
    nonfinite: list[str] = field(default_factory=list)
    digests: dict[str, int] = field(default_factory=dict)


def write(
    path: Path,
    steps: Sequence[Step],
    layout: Mapping[str, tuple[str, tuple[int, ...]]],
    checkpoint: Checkpoint,
    dtype: str = "float32",
    allow_nonfinite: bool = False,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> Written:
    """Write the steps' values, as `dtype`, to a new file at `path`; provenance is added by `sign`.

    `layout` is where in the file each variable's values go, and their shape, by the variable's attribute path.

    Raises:
        ConversionError: a value is not finite or too large for `dtype`, or the disk refuses.
    """
    offsets = _lay_out(path, dict(layout.values()), dtype)
    written = Written()
    scratch = Scratch()
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)

    def convert(step: Step) -> tuple[int, list[float], list[str], dict[str, int]]:
        tensors = read(step, checkpoint, scratch)
        infinite = [source.name for source, values in zip(step.sources, tensors, strict=True) if not is_finite(values)]
        if infinite and not allow_nonfinite:
            raise ConversionError(f"{printable(infinite[0])} holds NaN or Inf; --allow-nonfinite converts it as it is")
        laid, losses = laid_out(step, tensors, dtype)
        if step.leaf.fold is not None and not infinite and not all(map(is_finite, laid)):
            infinite = [step.name]
            if not allow_nonfinite:
                told = f"{printable(step.name)} gives NaN or Inf where it is folded ({step.leaf.fold})"
                raise ConversionError(f"{told}; --allow-nonfinite converts it as it is")
        digests = {}
        for target, value in zip(step.targets, laid, strict=True):
            value = dense(value, scratch)
            place, _ = layout[target.path]
            digests[place] = digest(place, value)
            _write_at(descriptor, value.reshape(-1).view(np.uint8).data, offsets[place])
        return sum(value.nbytes for value in laid), losses, infinite, digests

    try:
        with ThreadPoolExecutor(THREADS) as pool:
            for nbytes, losses, infinite, digests in _map(pool, convert, list(steps)):
                written.nbytes += nbytes
                written.narrowed += sum(loss > 0 for loss in losses)
                written.loss = max([written.loss, *losses])
                written.digests.update(digests)
                written.nonfinite += infinite
                progress(nbytes)
    finally:
        os.close(descriptor)
    return written


def read(step: Step, checkpoint: Checkpoint, scratch: Scratch) -> list[np.ndarray]:
    """The step's tensors; with one of them, it is good until the thread's next read."""
    if len(step.sources) == 1:
        return [checkpoint.read(step.sources[0].entry, scratch)]
    return [checkpoint.read(source.entry) for source in step.sources]


def laid_out(step: Step, tensors: list[np.ndarray], dtype: str) -> tuple[list[np.ndarray], list[float]]:
    """The targets' values as `dtype`, and for each tensor the error that this made (`cast`).

    What is folded is folded in float64, and then rounded once; so is a constant.

    Raises:
        ConversionError: a finite value becomes infinite.
    """
    if step.leaf.computed:
        wide = step.lay_out([tensor.astype(np.float64) for tensor in tensors])
        # What folding rounds is no loss of digits that the checkpoint had.
        losses = [cast(tensor, dtype, source.name)[1] for source, tensor in zip(step.sources, tensors, strict=True)]
        return [cast(value, dtype, step.name)[0] for value in wide], losses
    casts = [cast(tensor, dtype, source.name) for source, tensor in zip(step.sources, tensors, strict=True)]
    return step.lay_out([narrow for narrow, _ in casts]), [loss for _, loss in casts]


def _map(pool: ThreadPoolExecutor, function: Callable, items: list) -> Iterator[Any]:
    """Like pool.map, but at the first failure what has not begun is not begun."""
    futures = [pool.submit(function, item) for item in items]
    try:
        for future in futures:
            yield future.result()
    finally:
        for future in futures:
            future.cancel()


class _Patient:
    """A file whose writes never fail, for HDF5: when the disk is full, closing a file ends the whole process.

    The first error is kept in `error`, and what was to be written is then lost.
    """

    def __init__(self, file: io.FileIO):
        self._file = file
        self.error: OSError | None = None
        self.seek, self.tell, self.read, self.readinto = file.seek, file.tell, file.read, file.readinto

    def write(self, data: memoryview) -> int:
        left = data
        try:
            while self.error is None and len(left):
                left = left[self._file.write(left) :]
        except OSError as error:
            self.error = error
        return len(data)

    def truncate(self, size: int) -> int:
        try:
            return self._file.truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size

    def flush(self) -> None:
        """What is written is not buffered."""


@contextlib.contextmanager
def _hdf5(path: Path, mode: str) -> Iterator[h5py.File]:
    """The open HDF5 file.

    Raises:
        OSError: the disk refuses; what the file holds is then worth nothing.
    """
    with open(path, "w+b" if mode == "w" else "r+b", buffering=0) as raw:
        patient = _Patient(raw)
        try:
            # A signal waits, because HDF5 cannot pass on what is raised where it calls us.
            with undisturbed(), h5py.File(patient, mode) as file:
                yield file
        finally:
            if patient.error is not None:
                raise patient.error


def _lay_out(path: Path, shapes: dict[str, tuple[int, ...]], dtype: str) -> dict[str, int]:
    """A file with room for every dataset; returns where in the file each one's values go."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    offsets = {}
    with _hdf5(path, "w") as file:
        for place in sorted(shapes):
            dataset = file.create_dataset(place, shapes[place], FLOATS[dtype], dcpl=properties)
            if shapes[place] == ():
                dataset[()] = 0  # h5py leaves out the properties of a single value, which then has no place yet
            offsets[place] = dataset.id.get_offset() or 0  # None where there is no value
    return offsets


def _write_at(descriptor: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done : done + _PIECE], offset + done)


def dense(view: np.ndarray, scratch: Scratch) -> np.ndarray:
    """A C-contiguous copy of a transposed view, made block by block along the axis that jumps farthest in memory."""
    if view.flags.c_contiguous:
        return view
    out = scratch.array("dense", view.shape, view.dtype)
    axis = int(np.argmax(view.strides))
    for start in range(0, view.shape[axis], _BLOCK):
        part = (slice(None),) * axis + (slice(start, start + _BLOCK),)
        out[part] = view[part]
    return out


def is_finite(values: np.ndarray) -> bool:
    """Whether every value is finite. A finite sum proves it at once; one that is not is looked into."""
    if values.dtype.itemsize < 4:
        values = values.astype(np.float32)
    with np.errstate(all="ignore"):
        return bool(np.isfinite(values.sum())) or bool(np.isfinite(values).all())


def cast(values: np.ndarray, dtype: str, name: str) -> tuple[np.ndarray, float]:
    """`values` as `dtype`, and the largest error this made, relative to the largest value (0 where nothing was lost).

    Raises:
        ConversionError: a finite value becomes infinite.
    """
    target = FLOATS[dtype]
    if values.dtype == target:
        return values, 0.0
    with np.errstate(all="ignore"):
        result = values.astype(target)
        if values.dtype.itemsize < target.itemsize:
            return result, 0.0  # float32 holds every float16 and bfloat16
        wide, back = values.astype(np.float64), result.astype(np.float64)
        finite = np.isfinite(wide)
        if not np.isfinite(back[finite]).all():
            raise ConversionError(f"{printable(name)} holds values too large for {dtype}")
        error = np.abs(back - wide)[finite].max(initial=0.0)
        scale = np.abs(wide[finite]).max(initial=0.0)
    return result, float(error / scale) if scale else 0.0


def narrowed(values: np.ndarray, dtype: str, name: str) -> np.ndarray:
    """`values` as `dtype`, the way back from a variable: what was widened has its own bits again, NaNs too.

    Raises:
        ConversionError: a finite value becomes infinite.
    """
    if dtype == "bfloat16" and values.dtype == FLOATS["float32"]:
        bits = values.view(np.uint32)
        if not (bits & 0xFFFF).any():  # it was widened; a conversion would give every NaN the same bits
            return (bits >> 16).astype(np.uint16).view(FLOATS[dtype])
    with np.errstate(all="ignore"):
        result = values.astype(FLOATS[dtype], copy=False)
    if values.dtype.itemsize > result.dtype.itemsize and np.isfinite(values[~np.isfinite(result)]).any():
        raise ConversionError(f"{printable(name)} holds values too large for {dtype}, as the checkpoint has it")
    return result


def sign(path: Path, attributes: dict[str, Any], digests: dict[str, int]) -> None:
    """Write provenance into the root attributes, each dataset's digest beside it, and the digest of all these."""
    with _hdf5(path, "r+") as file:
        weights_format.sign(file, attributes, digests)
