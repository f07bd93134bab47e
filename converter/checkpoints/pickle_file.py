"""Pickles of named numpy arrays: Detectron2's `.pkl`, and `.pdparams` of PaddlePaddle. Nothing in them is run."""

import math
from typing import Any

import numpy as np

from converter.checkpoints.tensors import Entry, Made, Storage
from converter.checkpoints.tree import Beside, entries
from converter.checkpoints.unpickle import ArrayRef, NumpyType, Run, Table
from converter.errors import ConversionError, printable

# numpy's code of a dtype -> torch's name.
_DTYPES = {
    **{"f2": "float16", "f4": "float32", "f8": "float64", "bfloat16": "bfloat16", "b1": "bool"},
    **{
        f"{kind}{nbytes}": f"{word}{8 * nbytes}"
        for kind, word in (("i", "int"), ("u", "uint"))
        for nbytes in (1, 2, 4, 8)
    },
    **{"c8": "complex64", "c16": "complex128"},
}
# Paddle's table of the parameters that it cut, because a pickle of protocol 2 holds no more than 4 GB.
_CUT = "UnpackBigParamInfor@@"


def read_pickle(tree: Any, descriptor: int, file: str, beside: Beside) -> list[Entry]:
    """Entries of what a pickle in the open file describes; values are read when they are asked for.

    Raises:
        ConversionError: it holds no arrays, or parts of one that are not there.
    """

    def entry(key: str, name: str, value: Any) -> Entry | None:
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):  # Paddle's name, and the array
            value = value[1]
        if not isinstance(value, ArrayRef) or value.dtype is None or not value.dtype.plain:
            return None
        return _entry(key, name, value, value.dtype, descriptor, file)

    found = entries(tree, entry, beside)
    table = tree.get(_CUT) if isinstance(tree, Table) else None
    return _joined(found, table) if isinstance(table, Table) else found


def _entry(key: str, name: str, array: ArrayRef, kind: NumpyType, descriptor: int, file: str) -> Entry:
    dtype = _DTYPES.get(kind.code)
    place, problem = None, None
    if dtype is None:
        problem = f"its dtype {printable(kind.code, 40)} is not known"
    else:
        nbytes = math.prod(array.shape) * (np.dtype(kind.code).itemsize if dtype != "bfloat16" else 2)
        data = array.data
        if isinstance(data, Run) and data.coded and nbytes <= data.length <= 2 * nbytes:
            place = Storage(descriptor, data.start, nbytes, kind.big_endian, coded=data.length)
        elif isinstance(data, Run) and not data.coded and data.length == nbytes:
            place = Storage(descriptor, data.start, nbytes, kind.big_endian)
        elif isinstance(data, bytes) and len(data) == nbytes:
            place = Storage(descriptor, 0, nbytes, kind.big_endian, held=data)
        else:
            problem = "its values are not as many as its shape needs; the file is damaged, get it again"
    return Entry(name, array.shape, dtype or "unknown", key, file, problem, place, 0, array.strides)


def _joined(found: list[Entry], table: Table) -> list[Entry]:
    """The entries with each parameter that was cut in place of its parts.

    Raises:
        ConversionError: a part is not there, or the parts are not the whole.
    """
    by_name = {entry.name: entry for entry in found if entry.key == ""}
    used: set[str] = set()
    whole = []
    for name, row in table.items():
        shape, parts = (row.get("OriginShape"), row.get("slices")) if isinstance(row, Table) else (None, None)
        names = parts if isinstance(parts, list) and all(isinstance(part, str) for part in parts) else []
        of = tuple(by_name[part] for part in names if part in by_name and part not in used)
        lengths = shape if isinstance(shape, (tuple, list)) and all(type(n) is int and n >= 0 for n in shape) else ()
        same = len({entry.dtype for entry in of}) == 1 and len(of) == len(names)
        if not same or sum(math.prod(entry.shape) for entry in of) != math.prod(lengths) or name in by_name:
            raise ConversionError(
                f"the parts of {printable(name)} are not all there; the file is damaged, get it again"
            )
        used |= {entry.name for entry in of}
        problem = next((entry.problem for entry in of if entry.problem), None)
        whole.append(
            Entry(name, tuple(lengths), of[0].dtype, "", of[0].file, problem, made=Made(of, _joining(tuple(lengths))))
        )
    return [entry for entry in found if entry.key or entry.name not in used] + whole


def _joining(shape: tuple[int, ...]) -> Any:
    return lambda values: np.concatenate([value.reshape(-1) for value in values]).reshape(shape)
