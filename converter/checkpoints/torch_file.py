"""The two file formats of torch.save: a zip archive (since torch 1.6), and the legacy run of pickles."""

import io
import os
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from converter.checkpoints.other_files import other_zip
from converter.checkpoints.pickle_file import read_pickle
from converter.checkpoints.tensors import ITEM_SIZES, Entry, Storage, read_into, strided_problem
from converter.checkpoints.tree import Beside, entries
from converter.checkpoints.unpickle import StorageRef, TensorRef, load, storage_ref
from converter.errors import ConversionError, printable

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
_VERSIONS = range(1, 11)  # of the zip format that torch reads
# Signature, flags, method, CRC, packed and unpacked length, length of the name, length of the extra field.
_LOCAL_HEADER = struct.Struct("<4s2xHH4xIIIHH")
# What ends a zip archive. Signature, count of records, bytes and place of the directory, length of the comment.
_END = struct.Struct("<4s6xHIIH")
_END_64 = struct.Struct("<4s28xQQQ")
_LOCATOR = struct.Struct("<4s4xQ4x")  # signature, place of the record above
_DESCRIPTORS = (12, 16, 20, 24)  # bytes of what may follow a record: CRC and lengths
_LONGEST_PICKLE = 1 << 28


@dataclass(frozen=True)
class _Record:
    """A record of a zip archive, where its bytes stand in the file."""

    start: int
    nbytes: int
    crc: int


def read_zip(descriptor: int, file: str, beside: Beside) -> list[Entry]:
    """Entries of a zip checkpoint; reads the directory and the pickle, none of the values.

    `beside` is told what stands beside the weights.

    Raises:
        ConversionError: not what torch.save writes: compressed, truncated, doubled or misshapen records, TorchScript.
    """
    records = _records(descriptor)
    if "data.pkl" not in records:
        raise ConversionError("it is a zip archive, but holds no data.pkl as torch.save writes it")
    if not {"version", ".data/version"} & records.keys():
        raise ConversionError("it is a zip archive, but does not say its version as torch.save does")

    def content(name: str) -> bytes:
        record = records[name]
        if record.nbytes > _LONGEST_PICKLE:
            raise ConversionError(f"its record {name} has {record.nbytes} bytes, more than torch ever writes there")
        values = np.empty(record.nbytes, np.uint8)
        read_into(descriptor, record.start, values)
        if record.crc not in (0, zlib.crc32(values.data)):
            raise ConversionError(f"its record {name} does not match its checksum; the file is damaged, get it again")
        return values.tobytes()

    _check_version(content(".data/version" if ".data/version" in records else "version"))
    order = content("byteorder") if "byteorder" in records else b"little"
    if order not in (b"little", b"big"):
        raise ConversionError("its byte order is neither little nor big")
    pickled = content("data.pkl")

    def storage(ref: StorageRef) -> Storage | str:
        record = records.get(f"data/{ref.key}")
        if record is None:
            return f"its values (record {printable(ref.key, 40)}) are not in the archive"
        if record.nbytes != _nbytes(ref):
            return f"its record holds {record.nbytes} bytes, its storage declares {_nbytes(ref)}"
        return Storage(descriptor, record.start, record.nbytes, order == b"big", record.crc)

    return _entries(load(io.BytesIO(pickled), len(pickled), _Declared(), beside.aside), storage, file, beside)


def _check_version(text: bytes) -> None:
    """See that the format is one that is known; what a later one means by the same records, nobody here knows."""
    number = re.match(rb"\s*\+?([0-9]{1,20})", text)  # torch looks no further either
    if number is None:
        raise ConversionError(f"its version is no number: {printable(text[:40])}")
    if int(number[1]) not in _VERSIONS:
        raise ConversionError(
            f"its zip format has version {int(number[1])}; torch knows {_VERSIONS[0]} to {_VERSIONS[-1]}: "
            "save it again with a release of torch"
        )


def _records(descriptor: int) -> dict[str, _Record]:
    """Name below the archive's one folder -> record, of every record that the directory lists.

    Other readers trust other parts of a zip: the directory, or the header before each record; the directory that
    stands before the end, or the one that the end names; and torch finds names whatever their case. So all must say the
    same, every byte must be explained, and names are those that torch writes.
    """
    size = os.fstat(descriptor).st_size
    with os.fdopen(os.dup(descriptor), "rb") as stream:
        try:
            with zipfile.ZipFile(stream) as archive:
                listed, directory = archive.infolist(), archive.start_dir
        except Exception as error:
            told = "its zip directory is damaged or cut off, as of a file that did not arrive whole; get it again"
            raise ConversionError(f"{told} ({type(error).__name__})") from None
    other = other_zip(info.orig_filename for info in listed)
    if other is not None:
        raise ConversionError(other)
    if _named_directory(descriptor, size) != (len(listed), directory):
        raise ConversionError("the end of its zip archive names another directory than the one before it")
    found: dict[str, _Record] = {}
    roots = {info.orig_filename.partition("/")[0] for info in listed}
    if len(roots) > 1:
        raise ConversionError("its records stand in several folders, where torch.save writes one")
    end, follows = 0, False
    for info in sorted(listed, key=lambda info: info.header_offset):
        shown = printable(info.orig_filename)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise ConversionError(
                f"its record {shown} is compressed, which torch.save never does; save it again with torch"
            )
        if info.flag_bits & 0x1:
            raise ConversionError(f"its record {shown} is encrypted")
        if info.is_dir():
            raise ConversionError(
                f"its record {shown} is a folder, which torch.save never writes: zip -0rDX leaves it out"
            )
        parts = info.orig_filename.split("/")
        if len(parts) < 2 or any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
            raise ConversionError(f"its record {shown} has an unsafe name")
        if info.header_offset - end not in (_DESCRIPTORS if follows else (0,)):
            raise ConversionError(f"its record {shown} overlaps another, or something stands before it")
        start, follows = _data_start(descriptor, info, shown)
        end = start + info.file_size
        if end > min(size, directory):
            raise ConversionError(f"its record {shown} is longer than the file")
        name = "/".join(parts[1:])
        if name in found:
            raise ConversionError(f"its record {printable(name)} stands twice in the archive")
        if name != name.lower() or not name.isascii():
            raise ConversionError(f"its record {shown} has a name in letters that torch never writes there")
        found[name] = _Record(start, info.file_size, info.CRC)
    if directory - end not in (_DESCRIPTORS if follows else (0,)):
        raise ConversionError("something stands before its zip directory")
    return found


def _named_directory(descriptor: int, size: int) -> tuple[int, int]:
    """Count of records and place of the directory, as the file's last bytes name them.

    torch takes either; Python's zipfile counts itself, and takes what stands before the end for the directory.
    """
    room = _END_64.size + _LOCATOR.size + _END.size
    last = os.pread(descriptor, room, max(0, size - room)).rjust(room, b"\0")
    signature, count, _, place, comment = _END.unpack_from(last, room - _END.size)
    if signature != b"PK\5\6" or comment:
        raise ConversionError("its zip directory is followed by what torch.save never writes there")
    signature, pointer = _LOCATOR.unpack_from(last, _END_64.size)
    if signature == b"PK\6\7":
        signature, count, _, place = _END_64.unpack_from(last)
        if signature != b"PK\6\6" or pointer != size - room:
            raise ConversionError("the pointer to its zip directory leads elsewhere")
    return count, place


def _data_start(descriptor: int, info: zipfile.ZipInfo, shown: str) -> tuple[int, bool]:
    """Where the record's bytes begin, by the header before them, which must say what the directory does.

    And whether CRC and lengths follow the bytes.
    """
    header = os.pread(descriptor, _LOCAL_HEADER.size, info.header_offset)
    if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\x03\x04"):
        raise ConversionError(f"its record {shown} has a damaged header")
    _, flags, method, crc, packed, unpacked, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    place = info.header_offset + _LOCAL_HEADER.size
    name = os.pread(descriptor, name_length, place)
    agrees = name == info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437", "replace")
    if not flags & 0x8:  # else crc and lengths follow the record, and are zero here
        lengths = {packed, unpacked} - {0xFFFFFFFF}  # that one: in the extra field
        agrees = agrees and crc == info.CRC and lengths <= {info.file_size}
    if not agrees or method != zipfile.ZIP_STORED or flags & 0x1:
        raise ConversionError(f"its record {shown} has a header that differs from the directory")
    return place + name_length + extra_length, bool(flags & 0x8)


def read_pickles(descriptor: int, file: str, beside: Beside) -> tuple[str, list[Entry]]:
    """Container and entries of a file that begins with a pickle: torch's legacy format, or one of numpy arrays.

    The legacy format is magic, version, system, object, storage keys, then the storages.

    Raises:
        ConversionError: neither, or cut off.
    """
    size = os.fstat(descriptor).st_size
    with _Clipped(descriptor, size) as stream:
        declared = _Declared()
        tree = load(stream, size, declared, beside.aside)
        if type(tree) is int and tree != _LEGACY_MAGIC:
            raise ConversionError("it is a pickle, but not one that torch.save wrote")
        if type(tree) is not int:
            return "numpy pickle", read_pickle(tree, descriptor, file, beside)
        version = load(stream, size)
        if version != _LEGACY_VERSION:
            raise ConversionError(f"its legacy format has version {printable(version, 40)}, not {_LEGACY_VERSION}")
        load(stream, size)  # the system that wrote it: torch stores little-endian numbers on every one
        tree = load(stream, size, declared, beside.aside)
        keys = load(stream, size)
        if not isinstance(keys, list) or set(map(type, keys)) - {str} or len(keys) != len(set(keys)):
            raise ConversionError("its list of storages is damaged")
        position = stream.tell()

    starts: dict[str, int] = {}
    for key in keys:
        count = int.from_bytes(os.pread(descriptor, 8, position), "little")
        position += 8
        ref = declared.refs.get(key)
        if ref is None or count * ITEM_SIZES.get(ref.dtype or "", 1) != _nbytes(ref):
            raise ConversionError("its storages are not as long as they are declared")
        starts[key] = position
        position += _nbytes(ref)
    if position > size:
        raise ConversionError(f"it is cut off: {size} bytes of at least {position}")

    def storage(ref: StorageRef) -> Storage | str:
        if ref.key not in starts:
            return "its values are not in the file"
        return Storage(descriptor, starts[ref.key], _nbytes(ref))

    return "legacy", _entries(tree, storage, file, beside)


class _Declared:
    """What a pickle says of its storages, by key; of each always the same, because torch keeps what it meets first."""

    def __init__(self) -> None:
        self.refs: dict[str, StorageRef] = {}

    def __call__(self, pid: Any) -> StorageRef:
        ref = storage_ref(pid)
        if len(pid) > 5 and isinstance(pid[5], tuple) and len(pid[5]) == 3:
            raise ConversionError("its storages are views of one another, as torch before 0.4 wrote; save it again")
        first = self.refs.setdefault(ref.key, ref)
        differs = (first.dtype, first.count) != (ref.dtype, ref.count)
        if differs and (first.count or ref.count):  # torch.save lets views of an empty storage differ
            raise ConversionError(f"its storage {printable(ref.key, 40)} is declared with two types or lengths")
        return ref


class _Clipped(io.BufferedReader):
    """A file read from its beginning, that makes no room for more bytes than it has."""

    def __init__(self, descriptor: int, size: int):
        super().__init__(io.FileIO(os.dup(descriptor), "rb"))
        self._size = size
        self.seek(0)

    def read(self, count: int | None = -1) -> bytes:
        if count is not None and count > io.DEFAULT_BUFFER_SIZE:
            count = min(count, max(0, self._size - self.tell()))
        return super().read(count)


def _nbytes(ref: StorageRef) -> int:
    return ref.count * (ITEM_SIZES.get(ref.dtype, 1) if ref.dtype else 1)


def _entries(tree: Any, storage: Callable[[StorageRef], Storage | str], file: str, beside: Beside) -> list[Entry]:
    """Every tensor that stands by name in a dict, wherever the dict is nested."""
    places: dict[StorageRef, Storage | str] = {}

    def entry(key: str, name: str, ref: Any) -> Entry | None:
        if not isinstance(ref, TensorRef):
            return None
        place, problem = None, ref.problem
        if ref.storage is not None:
            if ref.storage not in places:
                places[ref.storage] = storage(ref.storage)
            where = places[ref.storage]
            if isinstance(where, Storage):
                place = where
            else:
                problem = problem or where
        strides = _strides(ref)
        if place is not None and problem is None:
            item = ITEM_SIZES.get(ref.dtype)
            if item is None:
                problem = f"its dtype {printable(ref.dtype)} is not known"
            else:
                problem = strided_problem(ref.shape, strides, ref.offset, place.nbytes // item)
        return Entry(name, ref.shape, ref.dtype, key, file, problem, place, ref.offset, strides, ref.negated)

    return entries(tree, entry, beside)


def _strides(ref: TensorRef) -> tuple[int, ...]:
    """Strides with those of axes of length one, which mean nothing, set as a dense array has them."""
    strides = list(ref.strides)
    if len(strides) != len(ref.shape):
        return ref.strides
    expected = 1
    for axis in reversed(range(len(strides))):
        if ref.shape[axis] == 1:
            strides[axis] = expected
        expected *= ref.shape[axis]
    return tuple(strides)


assert sys.byteorder == "little", "read_into fills native arrays; TensorFlow runs on little-endian machines only"
