"""Checkpoint files written byte by byte: what torch.save and safetensors write, and what only a stranger would."""

import io
import json
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class Pickle:
    """Pickle opcodes as bytes. Every method returns the instructions that put one object on the stack."""

    NONE, TRUE, EMPTY_DICT, EMPTY_LIST, EMPTY_TUPLE = b"N", b"\x88", b"}", b"]", b")"

    @staticmethod
    def text(value: str | bytes) -> bytes:
        data = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
        return b"X" + struct.pack("<I", len(data)) + data

    @staticmethod
    def number(value: int) -> bytes:
        if 0 <= value < 1 << 31:
            return b"J" + struct.pack("<i", value)
        data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8a" + bytes([len(data)]) + data

    @classmethod
    def row(cls, *items: bytes) -> bytes:
        """A tuple."""
        return b"(" + b"".join(items) + b"t"

    @classmethod
    def numbers(cls, values: Any) -> bytes:
        return cls.row(*map(cls.number, values))

    @classmethod
    def table(cls, *pairs: tuple[bytes | str, bytes]) -> bytes:
        """A dict; keys may be given as text."""
        items = (cls.text(key) + value if isinstance(key, str) else key + value for key, value in pairs)
        return b"}(" + b"".join(items) + b"u"

    @staticmethod
    def named(place: str) -> bytes:
        """A global: module.name."""
        module, _, name = place.rpartition(".")
        return b"c" + module.encode() + b"\n" + name.encode() + b"\n"

    @classmethod
    def call(cls, function: str | bytes, *args: bytes) -> bytes:
        named = cls.named(function) if isinstance(function, str) else function
        return named + cls.row(*args) + b"R"

    @staticmethod
    def keep(slot: int, value: bytes) -> bytes:
        return value + b"r" + struct.pack("<I", slot)

    @staticmethod
    def again(slot: int) -> bytes:
        return b"j" + struct.pack("<I", slot)

    @classmethod
    def storage(cls, key: str = "0", count: int = 4, kind: str = "FloatStorage", location: str = "cpu") -> bytes:
        parts = (cls.text("storage"), cls.named(f"torch.{kind}"), cls.text(key), cls.text(location), cls.number(count))
        return cls.row(*parts) + b"Q"

    @classmethod
    def tensor(
        cls,
        shape: Any = (4,),
        strides: Any = (1,),
        offset: int = 0,
        storage: bytes | None = None,
        flags: bytes = b"",
        rebuild: str = "torch._utils._rebuild_tensor_v2",
    ) -> bytes:
        place = cls.storage() if storage is None else storage
        parts = (place, cls.number(offset), cls.numbers(shape), cls.numbers(strides), b"\x89", cls.call(ORDERED))
        return cls.call(rebuild, *parts, *([flags] if flags else []))

    @staticmethod
    def whole(body: bytes) -> bytes:
        """A complete pickle."""
        return b"\x80\x02" + body + b"."


ORDERED = "collections.OrderedDict"
P = Pickle
FOUR = struct.pack("<4f", 1.0, 2.0, 3.0, 4.0)


def zip_bytes(records: dict[str, bytes] | list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive of the records, by their full names."""
    target = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(target, "w", compression) as archive:
        warnings.simplefilter("ignore")  # of names that stand twice
        for name, data in records.items() if isinstance(records, dict) else records:
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return target.getvalue()


def checkpoint_zip(body: bytes, storages: dict[str, bytes] | None = None, **records: bytes) -> bytes:
    """A torch zip whose data.pkl is `body`, with the storages (one of four floats by default)."""
    kept = {"0": FOUR} if storages is None else storages
    data = {f"archive/data/{key}": value for key, value in kept.items()}
    extra = {f"archive/{name}": value for name, value in records.items()}
    return zip_bytes({"archive/data.pkl": P.whole(body), **extra, **data, "archive/version": b"3\n"})


def checkpoint_legacy(
    body: bytes, storages: dict[str, bytes] | None = None, item: int = 4, little: bytes = P.TRUE
) -> bytes:
    """A torch legacy file whose object is `body`; `little`: whether the machine that wrote it was little-endian."""
    kept = {"0": FOUR} if storages is None else storages
    head = P.whole(P.number(LEGACY_MAGIC)) + P.whole(P.number(1001)) + P.whole(P.table(("little_endian", little)))
    keys = P.whole(b"](" + b"".join(map(P.text, kept)) + b"e")
    data = b"".join(struct.pack("<q", len(value) // item) + value for value in kept.values())
    return head + P.whole(body) + keys + data


def safetensors_bytes(header: Any, data: bytes = FOUR, length: int | None = None) -> bytes:
    """A safetensors file; the header is text, or an object to be written as JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def item(shape: Any = (4,), offsets: Any = (0, 16), dtype: Any = "F32") -> dict[str, Any]:
    """One tensor of a safetensors header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def put(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path
