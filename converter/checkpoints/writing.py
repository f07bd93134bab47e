"""Write a state dict, one tensor at a time and without torch: as safetensors, or in the zip format of torch.save."""

import json
import struct
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from converter.checkpoints.safetensors_file import DTYPES
from converter.checkpoints.tensors import NUMBERS, dense_strides
from converter.checkpoints.unpickle import STORAGES

ZIPPED = (".pth", ".pt", ".bin")
ENDINGS = (*ZIPPED, ".safetensors")
_ALIGNMENT = 64  # of each storage, as torch has it
_LOCAL_HEADER = 30  # bytes before the name of a zip record
_ZIP64_EXTRA = 20  # bytes that a record adds to its header when its length needs 64 bits
_LARGE = (1 << 31) // 2  # from here on lengths are written with 64 bits


@dataclass(frozen=True)
class Named:
    """A tensor to be written: its name, dtype (torch's word) and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return prod(self.shape) * NUMBERS[self.dtype].itemsize


def write_checkpoint(path: Path, key: str, tensors: list[Named], values: Iterable[np.ndarray]) -> None:
    """Write the tensors to a new file at `path`; its ending tells the format.

    `values` are C-contiguous arrays in the order of `tensors`, each used before the next is asked for. `key` is the
    dotted path of nested dicts in which torch's format holds the state dict; safetensors knows none.
    """
    if path.name.endswith(ZIPPED):
        _write_zip(path, key, tensors, values)
    else:
        _write_safetensors(path, tensors, values)


def _bytes(values: np.ndarray) -> memoryview:
    return values.reshape(-1).view(np.uint8).data


def _write_safetensors(path: Path, tensors: list[Named], values: Iterable[np.ndarray]) -> None:
    words = {ours: theirs for theirs, ours in DTYPES.items()}
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for one in tensors:
        offsets = [end, end := end + one.nbytes]
        header[one.name] = {"dtype": words[one.dtype], "shape": one.shape, "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for value in values:
            file.write(_bytes(value))


def _write_zip(path: Path, key: str, tensors: list[Named], values: Iterable[np.ndarray]) -> None:
    with zipfile.ZipFile(path, "x") as archive:
        _record(archive, "data.pkl", memoryview(_pickled(key, tensors)))
        _record(archive, "byteorder", memoryview(b"little"))
        for number, value in enumerate(values):
            _record(archive, f"data/{number}", _bytes(value))
        _record(archive, "version", memoryview(b"3\n"))


def _record(archive: zipfile.ZipFile, name: str, data: memoryview) -> None:
    """Add a stored record whose bytes begin at a multiple of 64, by padding the header as torch does."""
    info = zipfile.ZipInfo(f"archive/{name}")
    info.file_size = len(data)
    large = len(data) >= _LARGE
    start = archive.fp.tell() + _LOCAL_HEADER + len(info.filename) + 4 + (_ZIP64_EXTRA if large else 0)  # type: ignore[union-attr]
    padding = -start % _ALIGNMENT
    info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    with archive.open(info, "w", force_zip64=large) as record:
        record.write(data)


def _pickled(key: str, tensors: list[Named]) -> bytes:
    """The pickle that torch.load reads: dicts within dicts along `key`, the innermost with each tensor by its name."""
    words = {dtype: storage for storage, dtype in STORAGES.items()}
    parts = [b"\x80\x02"]
    path = key.split(".") if key else []
    for word in path:
        parts += [b"}", _text(word)]
    parts.append(b"ccollections\nOrderedDict\n)R(")
    for number, one in enumerate(tensors):
        storage = _tuple(
            _text("storage"),
            f"ctorch\n{words[one.dtype]}\n".encode(),
            _text(str(number)),
            _text("cpu"),
            _whole(prod(one.shape)),
        )
        arguments = _tuple(
            storage + b"Q",
            _whole(0),
            _tuple(*map(_whole, one.shape)),
            _tuple(*map(_whole, dense_strides(one.shape))),
            b"\x89",  # requires no gradient
            b"ccollections\nOrderedDict\n)R",  # no hooks
        )
        parts += [_text(one.name), b"ctorch._utils\n_rebuild_tensor_v2\n", arguments, b"R"]
    parts.append(b"u" + b"s" * len(path) + b".")
    return b"".join(parts)


def _text(text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _whole(number: int) -> bytes:
    if number < 1 << 31:
        return b"J" + struct.pack("<i", number)
    return b"\x8a\x08" + struct.pack("<q", number)


def _tuple(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"
