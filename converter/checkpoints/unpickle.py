"""Read the pickle inside a torch checkpoint without running anything it names.

torch's `weights_only=True` allows a short list of functions and refuses the rest. This reader is narrower still: it
imports nothing from the pickle and calls none of its functions. Each allowed global becomes a stand-in of our own that
only notes what the file declares, so that names, shapes and places of the tensors are known without touching a value.
Classes of the training program's own, which stand beside the weights, are known by their names alone and never built.
"""

import pickle
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any, BinaryIO, ClassVar

from converter.checkpoints.tensors import ITEM_SIZES
from converter.errors import ConversionError, printable

_MOST_AXES = 64  # as numpy and torch have it
_MOST_VALUES = 2**63  # what torch's own sizes can count
_MOST_ARGUMENTS = 16
_LONGEST_KEY = 100  # of a storage: torch numbers them
_MOST_STRANGERS = 100  # classes that are remembered by name


@dataclass(frozen=True)
class StorageRef:
    """A storage that the pickle refers to by key: element type (None: bytes), and count of elements."""

    key: str
    dtype: str | None
    count: int


@dataclass(frozen=True)
class TensorRef:
    """A tensor as the pickle declares it; `problem` says why it cannot be converted, whatever its values."""

    shape: tuple[int, ...]
    dtype: str
    storage: StorageRef | None = None
    offset: int = 0
    strides: tuple[int, ...] = ()
    negated: bool = False
    problem: str | None = None


@dataclass(frozen=True)
class Inert:
    """An object that was not built: only its class is known."""

    name: str


class Refused(Exception):
    """The pickle asks for something that a file of weights does not need."""


def _dtype(value: Any) -> str:
    if isinstance(value, Inert) and value.name.startswith("torch."):
        return value.name.removeprefix("torch.")
    raise Refused("a dtype is not a torch dtype")


def _lengths(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple) or len(value) > _MOST_AXES:
        raise Refused(f"a tensor's sizes or strides are not a tuple of at most {_MOST_AXES}")
    if any(type(n) is not int or not 0 <= n < _MOST_VALUES for n in value):
        raise Refused("a tensor's size or stride is not a whole number from 0 that torch can count to")
    return value


def _sizes(value: Any) -> tuple[int, ...]:
    if prod(_lengths(value)) >= _MOST_VALUES:
        raise Refused("a tensor has more values than torch can count")
    return value


def _tensor(
    storage: Any, offset: Any, size: Any, strides: Any, dtype: str | None = None, flags: Any = None
) -> TensorRef:
    if not isinstance(storage, StorageRef) or type(offset) is not int or not 0 <= offset < _MOST_VALUES:
        raise Refused("a tensor has no storage, or no place in it")
    element = dtype or storage.dtype
    if element is None:
        raise Refused("a tensor over untyped bytes has no dtype")
    flags = flags if isinstance(flags, dict) else {}
    return TensorRef(
        _sizes(size),
        element,
        storage,
        offset,
        _lengths(strides),
        negated=bool(flags.get("neg")),
        problem="it is complex" if flags.get("conj") else None,
    )


def _rebuild_tensor_v2(storage, offset, size, strides, _grad=None, _hooks=None, flags=None, *_):
    return _tensor(storage, offset, size, strides, flags=flags)


def _rebuild_tensor_v3(storage, offset, size, strides, _grad, _hooks, dtype, flags=None, *_):
    return _tensor(storage, offset, size, strides, _dtype(dtype), flags)


def _rebuild_parameter(tensor, *rest):
    return _with_state(tensor, rest[2] if len(rest) > 2 else None)


def _rebuild_from_type(function, _type, args, state=None):
    if function not in _REBUILDERS or not isinstance(args, tuple) or len(args) > _MOST_ARGUMENTS:
        raise Refused("a tensor of another class is not built as tensors are")
    return _with_state(function(*args), state)


def _with_state(tensor: Any, state: Any) -> TensorRef:
    """The tensor with Python attributes, which are of no use here, unless they are torch's names for its values."""
    if not isinstance(tensor, TensorRef):
        raise Refused("a parameter is not made of a tensor")
    tables = [part for part in (state if isinstance(state, tuple) else (state,)) if isinstance(part, dict)]
    if any(name in table for table in tables for name in ("data", "real", "imag")):
        return replace(tensor, problem="its values are replaced by an attribute")
    return tensor


def _rebuild_distributed(_type, dtype, size, *_):
    gather = "get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))"
    return TensorRef(_sizes(size), _dtype(dtype), problem=f"it is a part of a DTensor: gather it with {gather}")


def _rebuild_meta(dtype, size, *_):
    return TensorRef(_sizes(size), _dtype(dtype), problem="it is a meta tensor and holds no values")


def _rebuild_sparse(_layout, data, *_):
    parts = data if isinstance(data, tuple) and len(data) <= _MOST_ARGUMENTS else ()
    size = next((part for part in parts if isinstance(part, tuple)), ())
    dtype = next((part.dtype for part in reversed(parts) if isinstance(part, TensorRef)), "float32")
    return TensorRef(_sizes(size), dtype, problem="it is sparse")


def _rebuild_quantized(storage, _offset, size, *_):
    dtype = storage.dtype if isinstance(storage, StorageRef) else None
    return TensorRef(_sizes(size), dtype or "quint8", problem="it is quantized")


def _ordered_dict(*args: Any) -> OrderedDict:
    result: OrderedDict = OrderedDict()
    for pair in args[0] if args and isinstance(args[0], (list, tuple)) else ():
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise Refused("an OrderedDict is not made of pairs")
        _set(result, pair[0], pair[1])
    return result


def _size(*args: Any) -> tuple:
    values = args[0] if args else ()
    return _sizes(tuple(values) if isinstance(values, list) and len(values) <= _MOST_AXES else values)


def _set(mapping: Any, key: Any, value: Any) -> None:
    if isinstance(mapping, Inert):
        return
    if not isinstance(mapping, dict):
        raise Refused("items are set on something that is not a dict")
    # A tensor has a name. What stands under any other key is not looked at: the hash of what a stranger nested may
    # never end, and his numbers may all have the same one.
    if isinstance(key, str):
        if key in mapping:
            raise Refused(f"the key {printable(key)} stands twice in one dict")
        mapping[key] = value


_REBUILDERS = (
    *(_rebuild_tensor_v2, _rebuild_tensor_v3, _rebuild_parameter),
    *(_rebuild_meta, _rebuild_sparse, _rebuild_quantized, _rebuild_distributed),
)
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch._utils._rebuild_meta_tensor_no_storage": _rebuild_meta,
    "torch._utils._rebuild_sparse_tensor": _rebuild_sparse,
    "torch._utils._rebuild_sparse_csr_tensor": _rebuild_sparse,
    "torch._utils._rebuild_qtensor": _rebuild_quantized,
    "torch._utils._rebuild_wrapper_subclass": _rebuild_distributed,
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": _size,
}
STORAGES = {
    **{"FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16", "BFloat16Storage": "bfloat16"},
    **{"LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8"},
    **{"ByteStorage": "uint8", "BoolStorage": "bool", "QInt8Storage": "qint8", "QUInt8Storage": "quint8"},
    **{"QInt32Storage": "qint32", "QUInt4x2Storage": "quint4x2", "QUInt2x4Storage": "quint2x4"},
    **{"ComplexFloatStorage": "complex64", "ComplexDoubleStorage": "complex128", "UntypedStorage": None},
}
_PLAIN = """
    int long float complex bool str unicode bytes bytearray list tuple dict set frozenset slice range xrange object
"""
# Harmless company of weights in training checkpoints, of torch, numpy and Python: noted by name, never built.
_INERT = {
    *(f"torch.{name}" for name in ITEM_SIZES),
    *("torch.device", "torch.Tensor", "torch.nn.parameter.Parameter", "torch.serialization._get_layout"),
    *("torch.strided", "torch.sparse_coo", "torch.sparse_csr", "torch.per_tensor_affine", "torch.per_channel_affine"),
    *("argparse.Namespace", "collections.defaultdict", "collections.Counter"),
    *("numpy.dtype", "numpy.core.multiarray.scalar", "numpy.core.multiarray._reconstruct", "numpy.ndarray"),
    *("numpy._core.multiarray.scalar", "numpy._core.multiarray._reconstruct", "_codecs.encode"),
    *("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"),
    *(f"pathlib.{name}" for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
    *(f"pathlib._local.{name}" for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
    *(f"datetime.{name}" for name in ("datetime", "date", "time", "timedelta", "timezone")),
    *(f"{home}.{name}" for home in ("builtins", "__builtin__") for name in _PLAIN.split()),
    *("collections.deque", "types.SimpleNamespace", "functools.partial", "io.BytesIO", "_io.BytesIO", "uuid.UUID"),
    *("decimal.Decimal", "fractions.Fraction", "copyreg._reconstructor", "copy_reg._reconstructor", "typing.Any"),
    *("torch.Generator", "torch.storage._load_from_bytes"),
}
# Packages of which no class is the training program's own: Python's under the names of Python 2 too, by which torch
# pickles them.
_HOMES = {"torch", "numpy", *sys.stdlib_module_names}
_HOMES |= {module.partition(".")[0] for module in (*IMPORT_MAPPING, *(module for module, _ in NAME_MAPPING))}
_OPCODES = (
    "PROTO STOP FRAME MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT "
    "BINSTRING SHORT_BINSTRING BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES "
    "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS "
    "BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL BINPERSID REDUCE NEWOBJ BUILD EMPTY_SET "
    "ADDITEMS POP POP_MARK DUP FROZENSET BYTEARRAY8 BINUNICODE8 BINBYTES8 NEWOBJ_EX"
).split()


# The pure Python unpickler: its memo is a dict (the C one can be made to allocate gigabytes by one opcode), and its
# table of opcodes can be cut down to what torch writes for a state dict, which is binary: protocol 2 and later.
_PythonUnpickler: Any = pickle._Unpickler


class _Unpickler(_PythonUnpickler):
    dispatch: ClassVar = {
        code: handler
        for code, handler in _PythonUnpickler.dispatch.items()
        if code in {getattr(pickle, name)[0] for name in _OPCODES}
    }

    def __init__(self, file: BinaryIO, size: int, storage: Callable[[Any], StorageRef], strangers: set[str]):
        super().__init__(file, encoding="utf-8")
        self._storage = storage
        self._strangers = strangers
        self._size = size
        self._budget = 100_000 + 2 * size

    def find_class(self, module: Any, name: Any) -> Any:
        full = f"{module}.{name}"
        if full in _FUNCTIONS:
            return _FUNCTIONS[full]
        if module in ("torch", "torch.cuda", "torch.storage") and name in STORAGES:
            return Inert(full)
        ours = module.partition(".")[0] in _HOMES
        # Of a program's own classes it is known that they are not built here. What Python, numpy and torch have and
        # weights do not need is refused, because whoever loads the file otherwise runs it.
        if not ours and len(self._strangers) < _MOST_STRANGERS:
            self._strangers.add(full)
        if full in _INERT or not ours or full.startswith("torch.distributed."):
            return Inert(full)
        raise Refused(
            f"it holds a Python object of class {printable(full, 80)}, which could run code; "
            "save the weights alone: torch.save(model.state_dict(), path)"
        )

    def persistent_load(self, pid: Any) -> StorageRef:
        return self._storage(pid)

    def load_reduce(self) -> None:
        args = self.stack.pop()
        function = self.stack[-1]
        if not isinstance(args, tuple) or len(args) > _MOST_ARGUMENTS:
            raise Refused(f"a call's arguments are not a tuple of at most {_MOST_ARGUMENTS}")
        # What stands in the file once may be handed to a thousand calls that each copy it.
        self._budget -= sum(len(arg) for arg in args if isinstance(arg, (str, bytes, tuple, list, dict)))
        if self._budget < 0:
            raise Refused("it would grow to far more than it holds")
        if isinstance(function, Inert):
            self.stack[-1] = Inert(function.name)
        elif any(function is known for known in _FUNCTIONS.values()):
            self.stack[-1] = function(*args)
        else:
            raise Refused("it calls something that is not a function of torch")

    def load_build(self) -> None:
        self.stack.pop()  # attributes are of no use here, and setting them on our stand-ins could mislead
        if not isinstance(self.stack[-1], (dict, Inert)):
            raise Refused("it sets attributes on a tensor, or on something that is not an object")

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _set(self.stack[-1], key, value)

    def load_setitems(self) -> None:
        items = self.pop_mark()
        for i in range(0, len(items), 2):
            _set(self.stack[-1], items[i], items[i + 1])

    def load_dict(self) -> None:
        items = self.pop_mark()
        result: dict = {}
        for i in range(0, len(items), 2):
            _set(result, items[i], items[i + 1])
        self.append(result)

    def load_appends(self) -> None:
        items = self.pop_mark()
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)
        elif not isinstance(self.stack[-1], Inert):
            raise Refused("items are appended to something that is not a list")

    def load_append(self) -> None:
        value = self.stack.pop()
        if isinstance(self.stack[-1], list):
            self.stack[-1].append(value)
        elif not isinstance(self.stack[-1], Inert):
            raise Refused("an item is appended to something that is not a list")

    def load_newobj_ex(self) -> None:
        self.stack.pop()  # keyword arguments
        self.load_reduce()

    def load_frozenset(self) -> None:
        self.pop_mark()
        self.append(Inert("builtins.frozenset"))

    def load_bytearray8(self) -> None:
        self._skip()
        self.append(Inert("builtins.bytearray"))

    def _skip(self) -> None:
        """Over bytes whose length stands before them."""
        length = int.from_bytes(self.read(8), "little")
        if length > self._size:
            raise Refused("a value in its pickle is longer than the file")
        self.read(length)

    def load_empty_set(self) -> None:
        self.append(Inert("builtins.set"))

    def load_additems(self) -> None:
        self.pop_mark()

    for _code, _handler in (
        (pickle.REDUCE, load_reduce),
        (pickle.NEWOBJ, load_reduce),
        (pickle.NEWOBJ_EX, load_newobj_ex),
        (pickle.FROZENSET, load_frozenset),
        (pickle.BYTEARRAY8, load_bytearray8),
        (pickle.BUILD, load_build),
        (pickle.SETITEM, load_setitem),
        (pickle.SETITEMS, load_setitems),
        (pickle.DICT, load_dict),
        (pickle.APPENDS, load_appends),
        (pickle.APPEND, load_append),
        (pickle.EMPTY_SET, load_empty_set),
        (pickle.ADDITEMS, load_additems),
    ):
        dispatch[_code[0]] = _handler


def storage_ref(pid: Any) -> StorageRef:
    """The storage that a persistent id names: ("storage", type, key, location, count, ...)."""
    if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
        raise Refused("a persistent id is not a storage")
    kind, key, count = pid[1], pid[2], pid[4]
    if not isinstance(key, str) or len(key) > _LONGEST_KEY or type(count) is not int or not 0 <= count < _MOST_VALUES:
        raise Refused("a storage's key or size is not one")
    name = kind.name.rpartition(".")[2] if isinstance(kind, Inert) else ""
    if name not in STORAGES:
        raise Refused("a storage's type is not one")
    return StorageRef(key, STORAGES[name], count)


def load(
    file: BinaryIO,
    size: int,
    storage: Callable[[Any], StorageRef] = storage_ref,
    strangers: set[str] | None = None,
) -> Any:
    """The object that the next pickle in `file`, of `size` bytes, describes.

    `strangers` is told the names of classes that are neither Python's, numpy's nor torch's.

    It is made of dicts with text for keys (others are left out), lists, tuples, numbers, text, `TensorRef`s and
    `Inert`s.

    Raises:
        ConversionError: the pickle is broken, or needs more than a state dict does.
    """
    try:
        return _Unpickler(file, size, storage, set() if strangers is None else strangers).load()
    except Refused as error:
        raise ConversionError(str(error)) from None
    except ConversionError:
        raise
    except MemoryError:
        raise ConversionError("its pickle asks for more memory than there is") from None
    except KeyError as error:
        code = error.args[0] if error.args else None
        raise ConversionError(f"its pickle uses an instruction that weights never need ({code!r})") from None
    except Exception as error:  # whatever a broken pickle makes the reader stumble over
        raise ConversionError(f"its pickle is broken ({type(error).__name__})") from None
