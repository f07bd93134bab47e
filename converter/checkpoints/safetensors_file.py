"""The safetensors format: a header of JSON, then the bytes of every tensor, without gaps."""

import json
import os
from math import prod
from typing import Any

import numpy as np

from converter.checkpoints.tensors import ITEM_SIZES, Entry, Storage, dense_strides, read_into
from converter.errors import ConversionError, printable

LONGEST_HEADER = 100_000_000  # as the format sets it
DTYPES = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"},
    **{"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"},
    **{"U64": "uint64", "U32": "uint32", "U16": "uint16", "C64": "complex64"},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu"},
}


def read_safetensors(descriptor: int, file: str) -> list[Entry]:
    """Entries of a safetensors file: a header of JSON, then every tensor's bytes without gaps.

    Raises:
        ConversionError: it breaks a rule of the format.
    """
    size = os.fstat(descriptor).st_size
    length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    if length > min(LONGEST_HEADER, size - 8):
        raise ConversionError("it starts like a safetensors file, but its header is cut off")
    header = json_object(
        read_bytes(descriptor, 8, length), "it starts like a safetensors file, but its header is not JSON"
    )
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ConversionError("its __metadata__ is not a table of texts")
    places = {name: _place(name, item) for name, item in header.items()}
    end = 0
    entries = {}
    for name, (dtype, shape, first, last) in sorted(places.items(), key=lambda item: item[1][2:]):
        shown = printable(name)
        if first != end or last < first:
            raise ConversionError(f"tensor {shown} does not begin where the one before it ends")
        end = last
        item_size = ITEM_SIZES.get(dtype)
        problem = None if item_size else f"its dtype {printable(dtype, 20)} is not known"
        if item_size and prod(shape) * item_size != last - first:
            raise ConversionError(f"tensor {shown} has {last - first} bytes, its shape and dtype need another count")
        storage = Storage(descriptor, 8 + length + first, last - first)
        entries[name] = Entry(name, shape, dtype, "", file, problem, storage, 0, dense_strides(shape))
    if 8 + length + end != size:
        raise ConversionError(f"its tensors end at byte {8 + length + end}, the file at {size}")
    return [entries[name] for name in header]


def _place(name: str, item: Any) -> tuple[str, tuple[int, ...], int, int]:
    """(dtype, shape, first byte, byte after the last) as a safetensors header states them."""
    if isinstance(item, dict) and item.keys() == {"dtype", "shape", "data_offsets"}:
        dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
        if isinstance(dtype, str) and _whole(shape) and _whole(offsets) and len(offsets) == 2:
            return DTYPES.get(dtype, dtype), tuple(shape), *offsets
    raise ConversionError(f"tensor {printable(name)} is not described by dtype, shape and data_offsets")


def _whole(numbers: Any) -> bool:
    """A list of whole numbers as torch can count them, few enough to be axes."""
    return isinstance(numbers, list) and len(numbers) <= 64 and all(type(n) is int and 0 <= n < 2**63 for n in numbers)


def read_bytes(descriptor: int, start: int, count: int) -> bytes:
    """`count` bytes of the file.

    Raises:
        OSError: the file ends before.
    """
    values = np.empty(count, np.uint8)
    read_into(descriptor, start, values)
    return values.tobytes()


def json_object(text: bytes, complaint: str) -> dict:
    """The one JSON object that `text` is, in which no name stands twice.

    Raises:
        ConversionError: it is something else; the message is `complaint`, or that a name stands twice.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ConversionError("a name stands twice in its JSON")
        return result

    try:
        result = json.loads(text.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError):
        raise ConversionError(complaint) from None
    if not isinstance(result, dict):
        raise ConversionError(complaint)
    return result
