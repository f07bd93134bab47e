"""A tensor of a checkpoint file: what the file declares of it, and how its values are read, one tensor at a time."""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod

import ml_dtypes
import numpy as np

# torch's name -> numpy dtype (little-endian), of what can be converted.
FLOATS = {
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
}
# The same of all that can be read: what stands beside the weights may be counts and flags.
NUMBERS = {
    **FLOATS,
    **{name: np.dtype(name).newbyteorder("<") for name in ("bool", "uint8", "int8", "int16", "int32", "int64")},
}
# Bytes of one element, of everything that may be listed.
ITEM_SIZES = {
    **{name: dtype.itemsize for name, dtype in FLOATS.items()},
    **{"bool": 1, "uint8": 1, "int8": 1, "quint8": 1, "qint8": 1, "qint32": 4, "quint4x2": 1, "quint2x4": 1},
    **{"int16": 2, "uint16": 2, "int32": 4, "uint32": 4, "int64": 8, "uint64": 8},
    **{"complex32": 4, "complex64": 8, "complex128": 16},
    **{f"float8_{kind}": 1 for kind in ("e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz", "e8m0fnu")},
}
_SPAN = 1 << 18  # elements of a view's span that are read at once, however few of them the view picks


@dataclass(frozen=True)
class Storage:
    """A run of bytes in an open file that tensors are views of.

    `crc` is the zip record's CRC-32, or None where the container has none. `held` are the bytes themselves, where they
    are few and in memory already. Where the file has them as UTF-8, a character for each, `coded` is the text's length.
    """

    descriptor: int
    start: int
    nbytes: int
    big_endian: bool = False
    crc: int | None = None
    held: bytes | None = field(default=None, repr=False)
    coded: int = 0

    def fill(self, place: int, values: np.ndarray) -> None:
        """Fill the C-contiguous `values` with the bytes from `place`, counted from the storage's own beginning.

        Raises:
            OSError: the file ends before.
            ValueError: they are not those that the storage declares.
        """
        if self.held is None and not self.coded:
            read_into(self.descriptor, self.start + place, values)
            return
        data = self._decoded() if self.held is None else self.held
        values.reshape(-1).view(np.uint8)[:] = np.frombuffer(data, np.uint8)[place : place + values.nbytes]

    def _decoded(self) -> bytes:
        text = np.empty(self.coded, np.uint8)
        read_into(self.descriptor, self.start, text)
        try:
            data = str(text.data, "utf-8").encode("latin1")
        except UnicodeError:
            data = b""
        if len(data) != self.nbytes:
            raise ValueError("its bytes are not as many as its shape needs; the file is damaged, get it again")
        return data


@dataclass(frozen=True)
class Made:
    """Values that are computed of other tensors': `how` takes theirs."""

    of: tuple["Entry", ...]
    how: Callable[[list[np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class Entry:
    """One named tensor of a checkpoint.

    Attributes:
        name: the name in the state dict.
        shape: lengths of the axes.
        dtype: torch's name of the element type, without "torch.".
        key: dotted path of the state dict inside the file ("" when the file is one).
        file: name of the file that holds the values.
        problem: why its values cannot be read, or None.
        made: how its values are computed of other tensors of the file, where they do not stand there themselves
            (`Checkpoint.read` does it).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    key: str = ""
    file: str = ""
    problem: str | None = None
    storage: Storage | None = field(default=None, repr=False)
    offset: int = 0
    strides: tuple[int, ...] = ()
    negated: bool = False
    made: Made | None = field(default=None, repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes of its values laid out densely; stride tricks can make this far more than the file holds."""
        return prod(self.shape) * ITEM_SIZES.get(self.dtype, 1)

    @property
    def claimed(self) -> int:
        """The same of all that must be read for its values."""
        return self.nbytes if self.made is None else sum(one.claimed for one in self.made.of)

    def read(self, scratch: "Scratch | None" = None) -> np.ndarray:
        """Its values as a C-contiguous native array of the declared dtype; reads no other bytes when it is contiguous.

        With `scratch`, the array is good until the thread's next read.

        Raises:
            ValueError: `problem` is set, or the dtype is none of `NUMBERS`.
            OSError: the file is shorter than it was.
        """
        if self.problem or self.storage is None or self.dtype not in NUMBERS:
            raise ValueError(self.problem or f"its dtype is {self.dtype}")
        dtype = NUMBERS[self.dtype]
        stored = dtype.newbyteorder(">") if self.storage.big_endian else dtype
        place = self.offset * dtype.itemsize
        if prod(self.shape) == 0:
            values = np.empty(self.shape, stored)
        elif self.strides == dense_strides(self.shape):
            values = scratch.array("read", self.shape, stored) if scratch else np.empty(self.shape, stored)
            self.storage.fill(place, values)
        else:
            values = self._gather(stored, place, self.shape, self.strides)
        if self.negated:
            values = -values
        return values.astype(dtype, copy=False)

    def _gather(self, stored: np.dtype, place: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
        """A view that is not dense: read the span that it covers, in halves where it picks little of it.

        The file is never mapped: one that shrinks meanwhile would end the process.
        """
        assert self.storage is not None
        reach = [(n - 1) * stride for n, stride in zip(shape, strides, strict=True)]
        span = 1 + sum(reach)
        if span <= max(_SPAN, 4 * prod(shape)):
            flat = np.empty(span, stored)
            self.storage.fill(place, flat)
            steps = [stride * stored.itemsize for stride in strides]
            return np.array(np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False), order="C")
        axis = reach.index(max(reach))
        half = shape[axis] // 2
        first, second = ((*shape[:axis], n, *shape[axis + 1 :]) for n in (half, shape[axis] - half))
        middle = place + half * strides[axis] * stored.itemsize
        halves = self._gather(stored, place, first, strides), self._gather(stored, middle, second, strides)
        return np.concatenate(halves, axis)


def dense_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of a C-contiguous array."""
    strides = []
    stride = 1
    for n in reversed(shape):
        strides.append(stride)
        stride *= n
    return tuple(reversed(strides))


def strided_problem(shape: tuple[int, ...], strides: tuple[int, ...], offset: int, available: int) -> str | None:
    """Why a view does not lie inside its storage of `available` elements, or None."""
    if len(shape) != len(strides):
        return f"{len(shape)} axes but {len(strides)} strides"
    span = 0 if 0 in shape else 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if offset + span > available:
        return f"reaches element {offset + span} of a storage of {available}"
    return None


class Scratch(threading.local):
    """Memory that each thread uses again for every tensor: fresh pages cost a fifth of a large conversion."""

    def __init__(self) -> None:
        self._held: dict[str, np.ndarray] = {}

    def array(self, use: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array of undefined values; it is overwritten by the thread's next one for the same `use`."""
        nbytes = prod(shape) * dtype.itemsize
        if use not in self._held or self._held[use].size < nbytes:
            self._held[use] = np.empty(nbytes, np.uint8)
        return self._held[use][:nbytes].view(dtype).reshape(shape)


def read_into(descriptor: int, start: int, values: np.ndarray) -> None:
    """Fill the C-contiguous `values` with the file's bytes from `start`.

    Raises:
        OSError: the file ends before.
    """
    view = values.reshape(-1).view(np.uint8).data
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done : done + (1 << 30)]], start + done)
        if count == 0:
            raise OSError(f"the file ends at byte {start + done}, {len(view) - done} bytes early")
        done += count
