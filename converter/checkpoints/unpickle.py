"""Read the pickle inside a torch checkpoint without running anything it names.

torch's `weights_only=True` allows a short list of functions and refuses the rest. This reader is narrower still: it
imports nothing from the pickle and calls none of its functions. Each allowed global becomes a stand-in of our own that
only notes what the file declares, so that names, shapes and places of the tensors are known without touching a value.
Whatever else is named beside the weights, of whichever module, is known by its name alone, and never built or called.
Long values, such as those of numpy arrays, are not read either: it is noted where they stand.
"""

import builtins
import pickle
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, BinaryIO, ClassVar

from converter.checkpoints.tensors import ITEM_SIZES, dense_strides
from converter.errors import SAVE, ConversionError, printable

_MOST_AXES = 64  # as numpy and torch have it
_MOST_VALUES = 2**63  # what torch's own sizes can count
_MOST_ARGUMENTS = 16
_LONGEST_KEY = 100  # of a storage: torch numbers them
_MOST_STRANGERS = 100  # classes that are remembered by name
_LONGEST_NAME = 200  # of a class
_DEEPEST = 4  # lists and dicts within an object that are looked through
_NO_NUMBERS = "OVUSMm"  # numpy's letters for objects, structures, text and times
_LONG = 1 << 16  # bytes of a value from which on it is not read


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


@dataclass(frozen=True)
class Run:
    """A long value that was not read: where in the file it stands.

    `coded` are bytes that the file has as UTF-8, a character for each: so protocol 2 of Python 3 writes bytes.
    """

    start: int
    length: int
    coded: bool = False


@dataclass
class NumpyType:
    """A numpy dtype by its code, as `f4`; `plain` is one of single numbers."""

    code: str
    big_endian: bool = False
    plain: bool = True


@dataclass
class ArrayRef:
    """A numpy array as the pickle declares it; `strides` are in elements, `data` holds the values, or says where."""

    shape: tuple[int, ...] = ()
    dtype: NumpyType | None = None
    strides: tuple[int, ...] = ()
    data: bytes | Run | None = None


class Table(dict):
    """A dict of what stands under text; `unnamed` is what stands under other keys."""

    def __init__(self) -> None:
        super().__init__()
        self.unnamed: list[tuple[Any, Any]] = []


class Own(Table):
    """An object that was made of nothing: a dict if items are set on it, and no more than its class if not."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


def is_dict(value: Any) -> bool:
    """Whether a value is a dict, or an object that has items as one."""
    return isinstance(value, Table) and bool(value or value.unnamed or not isinstance(value, Own))


@dataclass
class Aside:
    """What a pickle holds besides numbers, text and tensors.

    Attributes:
        classes: names of those that are not read, but for the usual ones of Python, numpy and torch.
        dicts: names of those whose objects are read as dicts.
        inside: class -> how many tensors stand inside objects of it, where they are not read.
    """

    classes: set[str] = field(default_factory=set)
    dicts: set[str] = field(default_factory=set)
    inside: Counter[str] = field(default_factory=Counter)


class Refused(Exception):
    """The pickle asks for something that a file of weights does not need."""


def _could_run(name: str) -> str:
    return f"it holds a Python object of class {printable(name, 80)}, which could run code; {SAVE}"


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
    if isinstance(storage, Inert) and storage.name == "torch.storage._load_from_bytes":
        raise Refused("its tensors were pickled by pickle.dump; write them with torch.save(model.state_dict(), path)")
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
    if isinstance(tensor, (Inert, Own)):
        return Inert(tensor.name)
    return _with_state(tensor, rest[2] if len(rest) > 2 else None)


def _rebuild_from_type(function, _type, args, state=None):
    if isinstance(function, (Inert, Own)):
        return Inert(getattr(_type, "name", function.name))
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
    kind = "ShardedTensor" if getattr(_type, "name", "").endswith(".ShardedTensor") else "DTensor"
    gather = "get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))"
    return TensorRef(_sizes(size), _dtype(dtype), problem=f"it is a part of a {kind}: gather it with {gather}")


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


def _ordered_dict(*args: Any) -> Table:
    result = Table()
    for pair in args[0] if args and isinstance(args[0], (list, tuple)) else ():
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise Refused("an OrderedDict is not made of pairs")
        _set(result, pair[0], pair[1])
    return result


def _size(*args: Any) -> tuple:
    values = args[0] if args else ()
    return _sizes(tuple(values) if isinstance(values, list) and len(values) <= _MOST_AXES else values)


def _tuple(*args: Any) -> Any:
    """Paddle writes a tensor as a call: tuple((name, array))."""
    values = args[0] if args else ()
    return tuple(values) if isinstance(values, (list, tuple)) else Inert("builtins.tuple")


def _type(*args: Any) -> Inert:
    """The type of None, which annotations name; or a class that nobody makes here."""
    return Inert("builtins.NoneType" if args == (None,) else "builtins.type")


def _attribute(*args: Any) -> Inert:
    """A class within another, as protocols 2 and 3 name it, or an operation of torch: only a longer name here."""
    of, name = args if len(args) == 2 else (None, None)
    if isinstance(of, (Inert, Own)) and isinstance(name, str):
        return Inert(f"{of.name}.{name}"[:_LONGEST_NAME])
    return Inert("builtins.getattr")


def _encoded(*args: Any) -> Any:
    """Bytes as protocol 2 of Python 3 writes them."""
    text, coding = args if len(args) == 2 else (None, None)
    if coding in ("latin1", "latin-1") and isinstance(text, str):
        return text.encode("latin1")
    return Run(text.start, text.length, True) if isinstance(text, Run) else Inert("_codecs.encode")


def _numpy_type(*args: Any) -> Any:
    code = args[0] if args else None
    if isinstance(code, Inert) and code.name.startswith("ml_dtypes."):
        return NumpyType(code.name.removeprefix("ml_dtypes."))
    return NumpyType(code, plain=code[:1] not in _NO_NUMBERS) if isinstance(code, str) else Inert("numpy.dtype")


def _array(*args: Any) -> Any:
    """An array, whose shape and values follow as its state; of a subclass it is not known what that means."""
    of = args[0] if args else None
    return ArrayRef() if isinstance(of, Inert) and of.name == "numpy.ndarray" else Inert("numpy.ndarray")


def _array_of(data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> ArrayRef:
    """An array as protocol 5 writes it."""
    array = ArrayRef()
    _fill(array, dtype, shape, order == "F", data)
    if axes is not None:
        if not isinstance(axes, tuple) or sorted(_lengths(axes)) != [*range(len(array.shape))]:
            raise Refused("an array's axes are not in an order of them")
        array.shape = tuple(array.shape[axis] for axis in axes)
        array.strides = tuple(array.strides[axis] for axis in axes)
    return array


def _fill(array: ArrayRef, dtype: Any, shape: Any, fortran: Any, data: Any) -> None:
    if not isinstance(dtype, NumpyType):
        raise Refused("an array's dtype is none of numpy's")
    if isinstance(data, str):  # bytes of Python 2
        data = data.encode()
    if isinstance(data, Inert) and data.name.endswith(".bytes"):  # none of them, in protocol 2
        data = b""
    array.shape, array.dtype = _sizes(shape), dtype
    array.strides = dense_strides(array.shape[::-1])[::-1] if fortran else dense_strides(array.shape)
    array.data = data if isinstance(data, (bytes, Run)) else None


def _set(mapping: Any, key: Any, value: Any) -> None:
    if not isinstance(mapping, Table):
        raise Refused("items are set on something that is not a dict")
    # A tensor has a name. What stands under any other key is not looked at: the hash of what a stranger nested may
    # never end, and his numbers may all have the same one.
    if isinstance(key, Run):
        raise Refused(f"a name in its pickle has {key.length} characters")
    if not isinstance(key, str):
        mapping.unnamed.append((key, value))
        return
    if key in mapping:
        raise Refused(f"the key {printable(key)} stands twice in one dict")
    mapping[key] = value


def _is_strange(name: str) -> bool:
    """Whether a class is neither Python's nor numpy's nor torch's, so the training program's own."""
    return name.partition(".")[0] not in _HOMES


def is_usual(name: str) -> bool:
    """Whether it is of what weights of torch or numpy often stand beside, so that nobody needs to be told of it."""
    return name in _USUAL or name.startswith(_USUAL_HOMES)


def could_run(name: str) -> bool:
    """Whether it is Python's, numpy's or torch's, so that a reader that builds what it is told would run it."""
    return not _is_strange(name) and not is_usual(name)


def _is_of_data(name: str) -> bool:
    """Whether it is one of those that only hold what they are made of."""
    home, _, word = name.rpartition(".")
    own = getattr(builtins, word, None) if home in ("builtins", "__builtin__", "exceptions") else None
    return name.startswith(_OF_DATA) or (isinstance(own, type) and issubclass(own, BaseException))


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
    "collections.defaultdict": lambda *_: Table(),
    "torch.Size": _size,
    "_codecs.encode": _encoded,
    "numpy.dtype": _numpy_type,
    "paddle.framework.io_utils._reconstruct_dense_tensor_data": lambda *args: args[0] if args else None,
    **{f"{home}.tuple": _tuple for home in ("builtins", "__builtin__")},
    **{f"{home}.type": _type for home in ("builtins", "__builtin__")},
    **{f"{home}.getattr": _attribute for home in ("builtins", "__builtin__")},
    **{f"numpy.{core}.multiarray._reconstruct": _array for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _array_of for core in ("core", "_core")},
}
STORAGES = {
    **{"FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16", "BFloat16Storage": "bfloat16"},
    **{"LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8"},
    **{"ByteStorage": "uint8", "BoolStorage": "bool", "QInt8Storage": "qint8", "QUInt8Storage": "quint8"},
    **{"QInt32Storage": "qint32", "QUInt4x2Storage": "quint4x2", "QUInt2x4Storage": "quint2x4"},
    **{"ComplexFloatStorage": "complex64", "ComplexDoubleStorage": "complex128", "UntypedStorage": None},
}
# The usual company of weights in training checkpoints, of torch, numpy and Python. It is not built either.
_DATA = {
    ("builtins", "__builtin__"): """int long float complex bool str unicode bytes bytearray list dict set frozenset
        slice range xrange object Ellipsis NotImplemented""",
    ("argparse",): "Namespace",
    ("collections",): "Counter deque ChainMap UserDict UserList UserString",
    ("UserDict", "UserList", "UserString"): "IterableUserDict UserList UserString",
    ("pathlib", "pathlib._local"): "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath",
    ("datetime",): "datetime date time timedelta timezone",
    ("zoneinfo",): "ZoneInfo ZoneInfo._unpickle",
    ("decimal",): "Decimal Context",
    ("io", "_io"): "BytesIO StringIO",
    ("copyreg", "copy_reg"): "_reconstructor",
    ("array",): "array _array_reconstructor",
    ("ipaddress",): "IPv4Address IPv6Address IPv4Network IPv6Network IPv4Interface IPv6Interface",
    ("inspect",): "Signature Parameter _ParameterKind _empty",
    ("operator", "_operator"): "itemgetter attrgetter getitem or_",
    ("re", "sre"): "_compile Pattern",
    ("types",): "SimpleNamespace MappingProxyType GenericAlias",
    ("functools", "_functools", "__builtin__"): "partial reduce",
    ("fractions",): "Fraction",
    ("uuid",): "UUID SafeUUID",
    ("string",): "Template",
    ("random",): "Random",
    ("time",): "struct_time",
    ("logging",): "getLogger",
    ("numpy",): """ndarray bool bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64
        longdouble complex64 complex128 intc longlong ulonglong str_ bytes_ object_ void datetime64 timedelta64""",
    ("numpy.core.multiarray", "numpy._core.multiarray"): "scalar",
    ("numpy.random._pickle",): "__generator_ctor __bit_generator_ctor __randomstate_ctor",
    ("numpy.random.bit_generator",): "SeedSequence __pyx_unpickle_SeedSequence",
    ("torch",): "device Tensor Generator strided sparse_coo sparse_csr per_tensor_affine per_channel_affine "
    + " ".join(ITEM_SIZES),
    ("torch", "torch._utils.torch"): "preserve_format contiguous_format channels_last channels_last_3d",
    ("torch.nn.parameter",): "Parameter",
    ("torch.serialization",): "_get_layout",
    ("torch.storage",): "_load_from_bytes",
    ("torch.torch_version",): "TorchVersion",
}
_USUAL = {f"{home}.{name}" for homes, names in _DATA.items() for home in homes for name in names.split()}
# Packages whose objects are such company as well: optimizers, schedules and what feeds them.
_USUAL_HOMES = (
    *("torch.distributed.", "torch.optim.", "torch.utils.data.", "torch.amp.", "torch.cuda.amp."),
    *("numpy.dtypes.", "numpy.random._mt19937.", "numpy.random._pcg64.", "numpy.random._philox.", "typing."),
)
_USER_DICTS = ("collections.UserDict", "UserDict.IterableUserDict")  # their items stand in an attribute
# What a configuration names, as functools.partial(torch.nn.LayerNorm, eps=1e-6), and what is told of if it is called.
_NAMED = ("torch.nn.", "torch._C._nn.", "torch._C._VariableFunctionsClass")
# Rarer company, which is told of: modules and distributions of torch, enumerations, results of calls, kinds of arrays.
_OF_DATA = (
    *("torch.nn.", "torch.distributions.", "torch._utils._rebuild_nested_tensor"),
    *("numpy.ma.", "numpy.rec", "numpy.matrix", "numpy.core.records.", "numpy.defmatrix."),
    *("http.HTTPStatus", "httplib.HTTPStatus", "re.RegexFlag", "sre.RegexFlag", "signal.Signals", "signal.Handlers"),
    *(
        "os.stat_result",
        "posix.stat_result",
        "os.terminal_size",
        "itertools.",
        "decimal.",
        "urllib.parse.",
        "urlparse.",
    ),
    *("types.UnionType", "enum.", "collections."),
)
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

    def __init__(self, file: BinaryIO, size: int, storage: Callable[[Any], StorageRef], aside: Aside):
        super().__init__(file, encoding="utf-8")
        self._source = file
        self._storage = storage
        self._aside = aside
        self._size = size
        self._budget = self._looks = 100_000 + 2 * size

    def find_class(self, module: Any, name: Any) -> Any:
        full = f"{module}.{name}"
        if full in _FUNCTIONS:
            return _FUNCTIONS[full]
        if module in ("torch", "torch.cuda", "torch.storage") and name in STORAGES:
            return Inert(full)
        if not is_usual(full) and not full.startswith(_NAMED):
            self._note(full)
        return Inert(full)

    def _note(self, name: str) -> None:
        if len(self._aside.classes) < _MOST_STRANGERS:
            self._aside.classes.add(name)

    def persistent_load(self, pid: Any) -> StorageRef | Inert:
        if isinstance(pid, tuple) and len(pid) > 1 and pid[0] == "module" and isinstance(pid[1], Inert):
            return pid[1]  # how the legacy format names a class of modules
        return self._storage(pid)

    def load_reduce(self) -> None:
        args = self.stack.pop()
        function = self.stack[-1]
        if not isinstance(args, tuple):
            raise Refused("a call's arguments are not a tuple")
        if isinstance(function, (Inert, Own)):
            # Of a program's own classes it is known that they are not built here. What Python, numpy and torch can be
            # asked to do and weights do not need is refused, because whoever else loads the file runs it.
            if could_run(function.name) and not _is_of_data(function.name):
                raise Refused(_could_run(function.name))
            self._passed_over(function, args)
            if not is_usual(function.name):
                self._note(function.name)
            may_be_dict = not args and (_is_strange(function.name) or function.name in _USER_DICTS)
            self.stack[-1] = (Own if may_be_dict else Inert)(function.name)
            return
        if len(args) > _MOST_ARGUMENTS:
            raise Refused(f"a call of torch's has more arguments than at most {_MOST_ARGUMENTS}")
        # What stands in the file once may be handed to a thousand calls that each copy it.
        self._grow(sum(len(arg) for arg in args if isinstance(arg, (str, bytes, tuple, list, dict))))
        if not any(function is known for known in _FUNCTIONS.values()):
            raise Refused("it calls something that is not a function of torch")
        self.stack[-1] = made = function(*args)
        if isinstance(made, Inert) and made.name in _FUNCTIONS:  # of other arguments than weights give it
            if made.name.endswith(".getattr"):
                raise Refused(_could_run(made.name))
            self._note(made.name)

    def _grow(self, by: int) -> None:
        self._budget -= by
        if self._budget < 0:
            raise Refused("it would grow to far more than it holds")

    def _passed_over(self, owner: Inert | Own, values: Any) -> None:
        """Count the tensors that stand inside an object that is not built.

        What a file names often is looked through a few times only, so that no file takes long.
        """
        count, waiting = 0, [(values, 0)]
        while waiting and self._looks > 0:
            value, depth = waiting.pop()
            self._looks -= 1
            if isinstance(value, TensorRef):
                count += 1
            elif isinstance(value, (Table, list, tuple)) and depth < _DEEPEST:
                self._looks -= len(value)
                parts = value.values() if isinstance(value, Table) else value
                waiting += [(part, depth + 1) for part in parts if isinstance(part, (TensorRef, Table, list, tuple))]
        if count and (owner.name in self._aside.inside or len(self._aside.inside) < _MOST_STRANGERS):
            self._aside.inside[owner.name] += count

    def load_build(self) -> None:
        state, built = self.stack.pop(), self.stack[-1]
        if isinstance(built, ArrayRef):
            if not isinstance(state, tuple) or len(state) not in (4, 5):
                raise Refused("an array's state is not one")
            shape, dtype, fortran, data = state[-4:]
            _fill(built, dtype, shape, fortran, data)
        elif isinstance(built, NumpyType):
            if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", ">", "|", "="):
                raise Refused("a dtype's state is not one")
            built.big_endian = state[1] == ">"
        elif isinstance(built, Own) and built.name in _USER_DICTS and isinstance(state, Table) and not built:
            if isinstance(items := state.get("data"), Table):
                self._grow(len(items))
                self._read_as_dict(built)
                built.update(items)
        elif isinstance(built, (Inert, Own)):
            self._passed_over(built, state)
        elif not isinstance(built, dict):  # attributes of a dict are of no use here
            raise Refused("it sets attributes on a tensor, or on something that is not an object")

    def _set_items(self, items: list) -> None:
        target = self.stack[-1]
        if isinstance(target, Inert):
            self._passed_over(target, items)
            return
        if isinstance(target, Own) and items:
            self._read_as_dict(target)
        for i in range(0, len(items), 2):
            _set(target, items[i], items[i + 1])

    def _read_as_dict(self, target: Own) -> None:
        if target.name in self._aside.classes:
            self._aside.classes.remove(target.name)
            self._aside.dicts.add(target.name)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def load_setitems(self) -> None:
        self._set_items(self.pop_mark())

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append(Table())
        self._set_items(items)

    def load_empty_dictionary(self) -> None:
        self.append(Table())

    def _append_items(self, items: list) -> None:
        target = self.stack[-1]
        if isinstance(target, (Inert, Own)):
            self._passed_over(target, items)
        elif isinstance(target, list):
            target.extend(items)
        else:
            raise Refused("items are appended to something that is not a list")

    def load_appends(self) -> None:
        self._append_items(self.pop_mark())

    def load_append(self) -> None:
        self._append_items([self.stack.pop()])

    def load_newobj_ex(self) -> None:
        self.stack.pop()  # keyword arguments
        self.load_reduce()

    def load_frozenset(self) -> None:
        self.pop_mark()
        self.append(Inert("builtins.frozenset"))

    def _taken(self, length: int) -> bytes | Run:
        """The next bytes, or where they stand if they are long."""
        start = self._source.tell()
        if length > self._size - start:
            raise Refused("a value in its pickle is longer than the file")
        if length < _LONG:
            return self.read(length)
        self._source.seek(start + length)
        return Run(start, length)

    def _load_bytes(self, width: int) -> None:
        self.append(self._taken(int.from_bytes(self.read(width), "little")))

    def _load_text(self, width: int) -> None:
        taken = self._taken(int.from_bytes(self.read(width), "little"))
        self.append(taken if isinstance(taken, Run) else str(taken, "utf-8", "surrogatepass"))

    def _load_string(self, width: int) -> None:
        """What Python 2 calls a string: text, or bytes."""
        taken = self._taken(int.from_bytes(self.read(width), "little"))
        try:
            self.append(taken if isinstance(taken, Run) else taken.decode())
        except UnicodeDecodeError:
            self.append(taken)

    def load_frame(self) -> None:
        """Frames say how much to read at once, and nothing of what is read."""
        length = int.from_bytes(self.read(8), "little")
        if length > self._size - self._source.tell():
            raise Refused("a frame of its pickle is longer than the file")

    def load_empty_set(self) -> None:
        self.append(Inert("builtins.set"))

    def load_additems(self) -> None:
        self.pop_mark()

    for _code, _handler in (
        (pickle.REDUCE, load_reduce),
        (pickle.NEWOBJ, load_reduce),
        (pickle.NEWOBJ_EX, load_newobj_ex),
        (pickle.FROZENSET, load_frozenset),
        (pickle.FRAME, load_frame),
        (pickle.EMPTY_DICT, load_empty_dictionary),
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
    for _load, _codes in (
        (_load_bytes, ((pickle.BINBYTES, 4), (pickle.BINBYTES8, 8), (pickle.BYTEARRAY8, 8))),
        (_load_text, ((pickle.BINUNICODE, 4), (pickle.BINUNICODE8, 8))),
        (_load_string, ((pickle.SHORT_BINSTRING, 1), (pickle.BINSTRING, 4))),
    ):
        for _code, _width in _codes:
            dispatch[_code[0]] = lambda self, load=_load, width=_width: load(self, width)


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
    aside: Aside | None = None,
) -> Any:
    """The object that the next pickle in `file`, of `size` bytes, describes.

    `aside` is told what it holds besides.

    It is made of `Table`s (see `is_dict`), lists, tuples, numbers, text, `TensorRef`s, `ArrayRef`s and `Inert`s; long
    text and bytes are `Run`s.

    Raises:
        ConversionError: the pickle is broken, or needs more than a state dict does.
    """
    try:
        tree = _Unpickler(file, size, storage, aside or Aside()).load()
        if isinstance(tree, (Inert, Own)) and could_run(tree.name) and tree.name not in _FUNCTIONS:
            raise Refused(_could_run(tree.name))
        return tree
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
