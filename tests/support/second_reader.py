"""A second reading of files that have no checksums, written from the formats' descriptions and not from the converter.

It judges what the converter reads and the formats' own libraries refuse, as torch does a whole file for a part that is
no tensor. It trusts the file, looks at the tensors only, and calls nothing that the file names.
"""

import io
import json
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

# Storage class of torch, or safetensors' word -> torch's word and bytes.
STORAGES = {"Half": ("float16", 2), "BFloat16": ("bfloat16", 2), "Float": ("float32", 4), "Double": ("float64", 8)}
WORDS = {"F16": ("float16", 2), "BF16": ("bfloat16", 2), "F32": ("float32", 4), "F64": ("float64", 8)}
OTHER_STORAGES = {"Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1, "Bool": 1, "ComplexFloat": 8}
Values = dict[str, tuple[str, tuple[int, ...], bytes]]


def read(path: Path) -> Values:
    """State dict and name -> dtype, shape and bytes of every float tensor.

    Raises:
        Exception: of any type, where the file is not as the formats are described.
    """
    data = path.read_bytes()
    return _safetensors(data) if data[8:9] == b"{" else _legacy(data)


def _safetensors(data: bytes) -> Values:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length].decode("utf-8"))
    values = data[8 + length :]
    found = {}
    for name, row in header.items():
        if name != "__metadata__" and row["dtype"] in WORDS:
            dtype, item = WORDS[row["dtype"]]
            first, last = row["data_offsets"]
            assert 0 <= first <= last <= len(values)
            assert last - first == item * int(np.prod(row["shape"], dtype=object))
            found[f"/{name}"] = (dtype, tuple(row["shape"]), values[first:last])
    return found


class Named:
    """What the pickle names and what it makes of it: noted, not called."""

    def __init__(self, name: str, args: tuple | None = None):
        self.name, self.args = name, args  # None: it was not called

    def __call__(self, *args: Any) -> "Named":
        return Named(self.name, args)

    def __setstate__(self, state: Any) -> None:
        pass


def _ordered(*args: Any) -> dict:
    """An OrderedDict of pairs; called with anything else, it is of no tensors."""
    pairs = args[0] if len(args) == 1 and isinstance(args[0], (list, tuple)) else ()
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2 and isinstance(pair[0], str)}


class _Unpickler(pickle._Unpickler):  # the one in Python, whose opcodes can be replaced
    dispatch: ClassVar[dict] = dict(pickle._Unpickler.dispatch)
    kinds: dict[str, str]  # of the storages, by their keys
    stack: Any
    pop_mark: Any

    def find_class(self, module: str, name: str) -> Any:
        return _ordered if (module, name) == ("collections", "OrderedDict") else Named(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        _, kind, key, *_ = pid
        name = kind.name.removeprefix("torch.").removesuffix("Storage")
        assert self.kinds.setdefault(key, name) == name
        return name, key

    def _set(self, items: list) -> None:
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, str):  # no other is the name of a tensor
                self.stack[-1][key] = value

    def load_setitems(self) -> None:
        items = self.pop_mark()
        self._set(items)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.SETITEM[0]] = load_setitem


def _legacy(data: bytes) -> Values:
    stream = io.BytesIO(data)
    for _ in ("magic", "version", "system"):
        _Unpickler(stream).load()
    unpickler = _Unpickler(stream)
    kinds: dict[str, str] = {}
    unpickler.kinds = kinds
    tensors = list(_tensors("", unpickler.load(), []))
    keys = _Unpickler(stream).load()
    place, storages = stream.tell(), {}
    for key in keys:
        count = int.from_bytes(data[place : place + 8], "little")
        kind = kinds[key]
        nbytes = count * (STORAGES[kind][1] if kind in STORAGES else OTHER_STORAGES[kind])
        storages[key] = data[place + 8 : place + 8 + nbytes]
        assert len(storages[key]) == nbytes
        place += 8 + nbytes
    return {
        name: (STORAGES[kind][0], shape, _picked(storages[key], STORAGES[kind][1], offset, shape, strides))
        for name, shape, (kind, key, offset, strides) in tensors
        if kind in STORAGES
    }


def _tensors(path: str, node: Any, seen: list) -> Any:
    """(state dict and name, shape, (kind and key of the storage, offset, strides)) of every tensor in nested dicts."""
    if any(node is one for one in seen):
        return
    seen.append(node)
    for name, value in node.items():
        if isinstance(value, Named) and value.args and value.name == "torch._utils._rebuild_tensor_v2":
            (kind, key), offset, shape, strides = value.args[:4]
            yield f"{path}/{name}", tuple(shape), (kind, key, offset, tuple(strides))
    for name, value in node.items():
        if isinstance(value, dict):
            yield from _tensors(f"{path}.{name}" if path else name, value, seen)


def _picked(storage: bytes, item: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    """Element by element, as the strides say."""
    places = np.full(shape, offset, np.int64)
    for axis, stride in enumerate(strides):
        places += (np.arange(shape[axis]) * stride).reshape(-1, *[1] * (len(shape) - axis - 1))
    elements = np.frombuffer(storage, np.dtype((np.void, item)))
    assert places.size == 0 or (places.min() >= 0 and places.max() < len(elements))
    return elements[places.reshape(-1)].tobytes()
