"""Hostile checkpoints, by what they try. Each is under 1 MB and must be refused quickly and cheaply."""

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator

from tests.support.checkpoint_bytes import (
    FOUR,
    ORDERED,
    P,
    checkpoint_legacy,
    checkpoint_zip,
    item,
    safetensors_bytes,
    zip_bytes,
)

GOOD = P.table(("w", P.tensor()))
HASH = 2**61 - 1  # every multiple of it has the same hash


def _many(count: int, one: Callable[[int], bytes]) -> bytes:
    return b"".join(map(one, range(count)))


def _short(i: int) -> bytes:
    """A short distinct text."""
    data = f"{i:x}".encode()
    return b"\x8c" + bytes([len(data)]) + data


def _nested(depth: int, opening: bytes, closing: bytes, inner: bytes) -> bytes:
    return opening * depth + inner + closing * depth


def pickles() -> Iterator[tuple[str, bytes]]:
    """(what it tries, the object of the pickle)."""
    # Code.
    for place in ("posix.system", "builtins.eval", "os.system", "torch.jit.load", "torch.hub.load", "numpy.load"):
        yield f"call {place}", P.call(place, P.text("touch executed"))
    yield "class torch.nn.modules.conv.Conv2d", b"ctorch.nn.modules.conv\nConv2d\n)\x81}b"
    yield "instance opcode", b"(X\x0e\x00\x00\x00touch executediposix\nsystem\n"
    yield "object opcode", b"(cposix\nsystem\nX\x0e\x00\x00\x00touch executedo"
    yield "extension opcode", b"\x82\x01"
    yield "getattr through a dotted name", b"\x80\x04" + P.text("torch.os") + P.text("system.__globals__") + b"\x93"
    yield "call of what a call returned", P.call(P.call("torch.device", P.text("cpu")), P.text("x")) * 2 + b"R"
    yield "call of a text", P.text("os.system") + P.row(P.text("touch executed")) + b"R"
    yield "state on a tensor", P.table(("w", P.tensor() + P.table(("data", P.NONE)) + b"b"))
    yield "state on a list", P.EMPTY_LIST + P.EMPTY_DICT + b"b"
    # Size and time.
    yield "200,000 keys", b"}(" + _many(120_000, lambda i: _short(i) + b"N") + b"u"
    yield (
        "100,000 tensors",
        b"}(X\x01\0\0\0w" + P.keep(1, P.tensor()) + _many(105_000, lambda i: _short(i) + b"h\1") + b"u",
    )
    yield "100,000 dicts", b"}(" + _many(110_000, lambda i: _short(i) + b"}") + b"u"
    tensor = P.keep(1, P.tensor())
    yield (
        "20,000 state dicts",
        P.row(tensor, b"}(" + _many(20_000, lambda i: _short(i) + b"}X\1\0\0\0wh\1s") + b"u") + (b"\x85"),
    )
    yield (
        "30,000 state dicts",
        P.table(("t", tensor)) + (b"(" + _many(30_000, lambda i: _short(i) + b"}X\1\0\0\0wh\1s") + b"u"),
    )
    long = P.text("n" * 400_000)
    yield "long path of many dicts", b"}" + long + b"}(" + _many(60_000, lambda i: _short(i) + b"}") + b"us"
    yield (
        "one long name in many dicts",
        P.keep(2, long) + b"0}" + b"(X\1\0\0\0t" + tensor + (_many(30_000, lambda i: _short(i) + b"}h\2h\1s") + b"u"),
    )
    yield "a name of 900,000 characters", P.table(("n" * 900_000, P.tensor()))
    yield "wrapped 100,000 times", P.table(("module." * 100_000 + "w", P.tensor()))
    wrapped = P.keep(1, P.tensor())
    words = ("module.", "model.", "state_dict.", "_orig_mod.")
    names = ["".join(words[i >> 2 * place & 3] for place in range(6)) + "w" for i in range(4096)]
    yield "wrapped in 4096 ways", b"}(X\1\0\0\0t" + wrapped + b"".join(P.text(name) + b"h\1" for name in names) + b"u"
    yield (
        "names full of numbers",
        b"}(X\1\0\0\0t" + wrapped + (_many(900, lambda i: P.text("1a" * 490 + str(i)) + b"h\1") + b"u"),
    )
    yield "numbers of one hash", b"}(" + _many(70_000, lambda i: P.number((i + 1) * HASH) + b"N") + b"u"
    yield "memo places of one hash", b"N" + _many(30_000, lambda i: b"p%d\n" % ((i + 1) * HASH))
    big = P.keep(1, b"](" + b"N" * 100_000 + b"e")
    pairs = P.keep(1, b"](" + _many(40_000, lambda i: _short(i) + b"N\x86") + b"e")
    function = P.keep(2, P.named(ORDERED))
    yield "one list into many OrderedDicts", pairs + b"0" + function + b"0(" + b"h\2h\1\x85R" * 90_000 + b"t"
    size = P.keep(2, P.named("torch.Size"))
    yield "one list into many sizes", big + b"0" + size + b"0(" + b"h\2h\1\x85R" * 90_000 + b"t"
    wide = P.keep(1, b"(" + b"N" * 100_000 + b"t")
    inert = P.keep(2, P.named("torch.device"))
    rebuild = P.keep(2, P.named("torch._utils._rebuild_tensor_v2"))
    yield "wide arguments to many calls", wide + b"0" + rebuild + b"0(" + b"h\2h\1R" * 90_000 + b"t"
    yield "wide arguments to nothing", wide + b"0" + inert + b"0(" + b"h\2h\1R" * 150_000 + b"t"
    text = P.keep(1, P.text("x" * 60_000))
    encode = P.keep(2, P.named("_codecs.encode"))
    yield "one text encoded many times", text + b"0" + encode + b"0(" + b"h\2h\1\x85R" * 90_000 + b"t"
    typed = P.keep(2, P.named("torch._tensor._rebuild_from_type_v2")) + b"0" + P.keep(3, P.named("torch.Tensor")) + b"0"
    yield (
        "wide arguments to a subclass",
        wide + b"0" + rebuild + b"0" + typed + (b"(" + b"(h\2h\3h\1Nth\1R" * 60_000 + b"t"),
    )
    named = (P.text("storage"), P.named("torch.FloatStorage"), b"h\1", P.text("cpu"), P.number(4))
    keyed = P.tensor(storage=P.row(*named) + b"Q")
    yield (
        "long storage key",
        P.keep(1, P.text("k" * 400_000)) + b"0}(" + _many(2000, lambda i: _short(i) + keyed) + b"u",
    )
    for name, opening, closing in (("lists", b"]", b"a"), ("tuples", b"", b"\x85"), ("dicts", b"}X\1\0\0\0a", b"s")):
        yield f"{name} nested 100,000 deep", _nested(100_000, opening, closing, b"N")
    ordered = P.named(ORDERED) + b")R" + P.text("a")
    yield "OrderedDicts nested 10,000 deep", _nested(10_000, ordered, b"s", b"N")
    yield "state dicts nested 40 deep", _nested(40, b"}X\1\0\0\0a", b"s", P.table(("w", P.tensor())))
    yield "legacy of version 1002", checkpoint_legacy(GOOD).replace(P.number(1001), P.number(1002))
    doubled = b"Nq\0" + b"".join(b"0h%ch%c\x86q%c" % (i, i, i + 1) for i in range(100))
    yield "tuples that double", doubled
    yield "tuples that double, as a key", b"}" + doubled + b"Ns"
    yield (
        "tuples that double, as a size",
        P.table(
            ("w", P.call("torch._utils._rebuild_tensor_v2", P.storage(), P.number(0), doubled, doubled, P.NONE, P.NONE))
        ),
    )
    parts = (P.text("storage"), P.named("torch.FloatStorage"), doubled, P.text("cpu"), P.number(4))
    yield "tuples that double, as a key of a storage", P.row(*parts) + b"Q"
    yield "a text that claims 4 GB", b"X\xff\xff\xff\xff" + b"x"
    yield "bytes that claim exabytes", b"\x8e" + struct.pack("<Q", 1 << 60)
    yield "a frame that claims exabytes", b"\x95" + struct.pack("<Q", 1 << 60)
    yield "a memo place of 4 billion", b"Nr\xff\xff\xff\xff"
    yield "a million stack marks", b"(" * 900_000
    yield "pops of nothing", b"0" * 100
    yield "build of nothing", b"b"
    # Shapes.
    for name, shape, strides in (
        ("terabytes through stride 0", (1 << 40,), (0,)),
        ("terabytes through two stride 0", (1 << 21, 1 << 21), (0, 0)),
        ("more values than can be counted", (1 << 40, 1 << 40), (0, 0)),
        ("a length of 2,000 bits", (1 << 2000,), (0,)),
        ("a stride of 2,000 bits", (2,), (1 << 2000,)),
        ("negative length", (-4,), (1,)),
        ("negative stride", (4,), (-1,)),
        ("beyond the storage", (5,), (1,)),
        ("beyond the storage by stride", (4,), (2,)),
        ("fewer strides", (2, 2), (1,)),
        ("65 axes", (1,) * 65, (1,) * 65),
        ("90,000 axes", (1,) * 90_000, (1,) * 90_000),
    ):
        yield name, P.table(("w", P.tensor(shape, strides)))
    yield "offset beyond the storage", P.table(("w", P.tensor(offset=1)))
    yield "offset of 2,000 bits", P.table(("w", P.tensor(offset=1 << 2000)))
    yield "negative offset", P.table(("w", P.tensor(offset=-1)))
    yield "storage longer than its record", P.table(("w", P.tensor((5,), storage=P.storage(count=5))))
    yield "storage shorter than its record", P.table(("w", P.tensor((3,), storage=P.storage(count=3))))
    yield "storage of another type", P.table(("w", P.tensor(storage=P.storage(kind="DoubleStorage"))))
    yield "storage of no type", P.table(("w", P.tensor(storage=P.storage(kind="float32"))))
    yield "storage of 2,000 bits", P.table(("w", P.tensor(storage=P.storage(count=1 << 2000))))
    yield "storage that is not there", P.table(("w", P.tensor(storage=P.storage("1"))))
    yield "storage out of the folder", P.table(("w", P.tensor(storage=P.storage("../version"))))
    # Objects.
    yield "self-referencing dict", b"}q\0X\1\0\0\0ah\0s"
    yield "one bare tensor", P.tensor()
    yield "a list of tensors", b"](" + P.tensor() + b"e"
    yield "a number", P.number(5)
    yield "nothing but settings", P.table(("epoch", P.number(3)))
    yield "names that are numbers", P.table((P.number(0), P.tensor()))
    yield "one name twice", P.table(("w", P.tensor()), ("w", P.tensor()))
    yield "one path to two dicts", P.table(("a.b", GOOD), ("a", P.table(("b", P.table(("v", P.tensor()))))))
    meta = P.call("torch._utils._rebuild_meta_tensor_no_storage", P.named("torch.float32"), P.numbers((4,)), P.NONE)
    yield "meta tensor", P.table(("w", meta))
    sparse = P.row(P.tensor(), P.tensor(), P.numbers((4,)), P.TRUE)
    yield (
        "sparse tensor",
        P.table(("w", P.call("torch._utils._rebuild_sparse_tensor", P.named("torch.sparse_coo"), sparse))),
    )
    quantized = P.row(P.named("torch.per_tensor_affine"), P.number(1), P.number(0))
    yield (
        "quantized tensor",
        P.table(
            (
                "w",
                P.call(
                    "torch._utils._rebuild_qtensor",
                    *(P.storage(count=16, kind="QInt8Storage"), P.number(0), P.numbers((16,)), P.numbers((1,))),
                    *(quantized, b"\x89", P.call(ORDERED)),
                ),
            )
        ),
    )
    yield "complex tensor", P.table(("w", P.tensor((2,), storage=P.storage(count=2, kind="ComplexFloatStorage"))))
    yield "conjugate tensor", P.table(("w", P.tensor(flags=P.table(("conj", P.TRUE)))))
    yield "whole numbers", P.table(("w", P.tensor(storage=P.storage(kind="IntStorage"))))
    for dtype in ("float8_e4m3fn", "float8_e5m2", "complex32", "uint16", "bits8", "quint4x2"):
        parts = (P.number(0), P.numbers((4,)), P.numbers((1,)), b"\x89", P.call(ORDERED), P.named(f"torch.{dtype}"))
        place = P.storage(count=16, kind="UntypedStorage").replace(b"ctorch\nUntyped", b"ctorch.storage\nUntyped")
        yield f"dtype {dtype}", P.table(("w", P.call("torch._utils._rebuild_tensor_v3", place, *parts)))
    state = P.table(("data", P.tensor(offset=0)))
    yield (
        "values replaced by an attribute",
        P.table(
            ("w", P.call("torch._utils._rebuild_parameter_with_state", P.tensor(), P.TRUE, P.call(ORDERED), state))
        ),
    )
    # torch takes the type of a storage from where it meets it first.
    for kind, count in (("DoubleStorage", 2), ("IntStorage", 4), ("HalfStorage", 8), ("FloatStorage", 2)):
        again = P.tensor((2,), storage=P.storage(kind=kind, count=count))
        yield f"one storage, again as {count} of {kind}", P.table(("w", P.tensor()), ("other", again))
    # Names.
    for name, word in (
        ("control characters", "w\x1b[2J\x07\r\n"),
        ("right to left", "w\u202etxet"),
        ("a lone surrogate", "w\ud800"),
        ("a zero byte", "w\0"),
    ):
        yield f"name with {name}", P.table((word, P.tensor()))


def _with_room(records: dict[str, bytes]) -> bytes:
    """A zip archive with four bytes that nothing explains after each record."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in records.items():
            archive.writestr(zipfile.ZipInfo(name), data)
            archive.start_dir += 4
    return target.getvalue()


def _shifted(archive: bytes, by: int) -> bytes:
    """The archive, saying that the records and the directory stand later than they do; Python's zipfile corrects it."""
    data = bytearray(archive)
    end = data.index(b"PK\5\6")
    places, at = [end + 16], data.index(b"PK\1\2")
    while at < end:
        places.append(at + 42)
        at += 46 + sum(struct.unpack_from("<HHH", data, at + 28))
    for place in places:
        struct.pack_into("<I", data, place, struct.unpack_from("<I", data, place)[0] + by)
    return bytes(data)


def zips() -> Iterator[tuple[str, bytes]]:
    """(what it tries, a whole zip file)."""
    good = checkpoint_zip(GOOD)
    body = P.whole(GOOD)
    base = {"archive/data.pkl": body, "archive/data/0": FOUR, "archive/version": b"3\n"}
    yield "compressed", zip_bytes(base, 8)
    yield "cut in half", good[: len(good) // 2]
    yield "last byte cut", good[:-1]
    yield "only the magic", b"PK\x03\x04"
    yield "only an empty directory", zip_bytes({})
    yield "a byte before", b"P" + good
    yield "a whole zip before", good + good
    yield "a byte behind", good + b"\0"
    yield "a comment", good[:-2] + b"\x05\x00hello"
    yield "a second directory in the comment", good[:-2] + struct.pack("<H", 22) + good[-22:]
    yield "no pickle", zip_bytes({"archive/data/0": FOUR})
    yield "TorchScript", zip_bytes({**base, "archive/constants.pkl": b"\x80\x02)."})
    yield "TorchScript code", zip_bytes({**base, "archive/code/__torch__.py": b"x"})
    yield "another byte order", zip_bytes({**base, "archive/byteorder": b"middle"})
    yield "an endless byte order", zip_bytes({**base, "archive/byteorder": b"x" * 900_000})
    yield "version 999", zip_bytes({**base, "archive/version": b"999\n"})
    yield "version 999 under .data", zip_bytes({**base, "archive/.data/version": b"999"})
    yield "a version that is no number", zip_bytes({**base, "archive/version": b"\x1b[31m"})
    yield "no version", zip_bytes({name: data for name, data in base.items() if "version" not in name})
    yield "one record twice", zip_bytes([*base.items(), ("archive/data/0", FOUR)])
    yield "one record twice in two folders", zip_bytes([*base.items(), ("other/data/0", FOUR)])
    for name in ("../data/1", "archive/../x", "/etc/passwd", "archive//x", "archive/./x", "archive\\x", "flat"):
        yield f"record {name}", zip_bytes({**base, name: b""})
    for name in ("DATA/0", "Data/0", "DATA.PKL", "BYTEORDER", "data/\u00e9"):  # torch ignores case
        yield f"record {name} after others", zip_bytes({**base, f"archive/{name}": FOUR})
        yield f"record {name} before others", zip_bytes({f"archive/{name}": FOUR, **base})
    yield "room between records", _with_room(base)
    yield "record with a zero byte", zip_bytes({**base, "archive/data/1x": b""}).replace(b"data/1x", b"data/1\0")
    central, end = good.index(b"PK\x01\x02"), good.index(b"PK\x05\x06")
    record = good.index(b"PK\x03\x04", 10)

    def patched(place: int, data: bytes) -> bytes:
        return good[:place] + data + good[place + len(data) :]

    yield "longer in the directory", patched(central + 20, struct.pack("<II", 1 << 30, 1 << 30))
    yield "terabytes in the directory", patched(central + 20, struct.pack("<II", 0xFFFFFFFF, 0xFFFFFFFF))
    yield "shorter in the directory", patched(central + 20, struct.pack("<II", 10, 10))
    yield "record elsewhere", patched(central + 42, struct.pack("<I", record))
    yield "record beyond the end", patched(central + 42, struct.pack("<I", 1 << 30))
    yield "another name before the record", patched(30, b"archive/data.pkX")
    yield "another length before the record", patched(18, struct.pack("<II", 10, 10))
    yield "another checksum before the record", patched(14, struct.pack("<I", 1))
    yield "encrypted in the directory", patched(central + 8, b"\1\0")
    yield "encrypted before the record", patched(6, b"\1\0")
    yield "compressed before the record", patched(8, b"\x08\0")
    yield "directory of another length", patched(end + 12, struct.pack("<I", 7))
    yield "directory elsewhere", patched(end + 16, struct.pack("<I", 3))
    yield "fewer records in the directory", patched(end + 8, struct.pack("<HH", 2, 2))
    yield "everything elsewhere", _shifted(good, 5)
    large = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 3, 3, end - central, central)
    for name, pointer in (("the first byte", 0), ("a record", record), ("nowhere", 1 << 60)):
        locator = struct.pack("<4sIQI", b"PK\6\7", 0, pointer, 1)
        yield f"pointer of the directory to {name}", good[:end] + large + locator + good[end:]
        yield f"pointer of the directory to {name}, a byte behind", good[:end] + large + locator + good[end:] + b"\0"
    yield "damaged pickle", patched(good.index(b"OrderedDict") + 1, b"R")
    yield "pickle with a wrong checksum", good.replace(struct.pack("<I", zlib.crc32(body)), b"\1\2\3\4")
    yield "9,000 records", zip_bytes({f"archive/{i:x}": b"" for i in range(9_000)})
    yield "a local header over the directory", patched(central, b"PK\3\4")


def safetensors() -> Iterator[tuple[str, bytes]]:
    """(what it tries, a whole safetensors file)."""
    yield "header longer than the file", safetensors_bytes({"w": item()}, length=1 << 20)
    yield "header of exabytes", safetensors_bytes({"w": item()}, length=(1 << 63) - 1)
    yield "header beyond the limit", safetensors_bytes({"w": item()}, length=100_000_001)
    yield "header of no length", safetensors_bytes({"w": item()}, length=0)
    yield "not JSON", safetensors_bytes(b"{nonsense")
    yield "JSON of another kind", safetensors_bytes(b'{"w": [1, 2, 3]}')
    yield "not UTF-8", safetensors_bytes(b'{"\xff": {}}')
    yield (
        "one name twice",
        safetensors_bytes(
            b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
        ),
    )
    yield "one field twice", safetensors_bytes(b'{"w":{"dtype":"F32","dtype":"F32","shape":[4],"data_offsets":[0,16]}}')
    yield "no tensors", safetensors_bytes({}, b"")
    yield "a gap", safetensors_bytes({"w": item((1,), (0, 4)), "v": item((2,), (8, 16))})
    yield "a gap at the start", safetensors_bytes({"w": item((3,), (4, 16))})
    yield "an overlap", safetensors_bytes({"w": item((3,), (0, 12)), "v": item((2,), (8, 16))})
    yield "the same bytes twice", safetensors_bytes({"w": item(), "v": item()})
    yield "trailing bytes", safetensors_bytes({"w": item()}, FOUR + b"x")
    yield "cut off", safetensors_bytes({"w": item()}, FOUR[:-1])
    yield "backwards", safetensors_bytes({"w": item((4,), (16, 0))})
    yield "shape of another size", safetensors_bytes({"w": item((5,))})
    yield "shape that overflows", safetensors_bytes({"w": item((1 << 62, 1 << 62, 4))})
    yield "terabytes", safetensors_bytes({"w": item((1 << 40,), (0, 1 << 42))})
    yield "negative length", safetensors_bytes({"w": item((-4,))})
    yield "fractional length", safetensors_bytes({"w": item((4.0,))})
    yield "true for a length", safetensors_bytes({"w": item((True, 4))})
    yield (
        "huge number",
        safetensors_bytes(b'{"w":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,16]}}'),
    )
    yield "100,000 axes", safetensors_bytes({"w": item((1,) * 100_000, (0, 4))}, FOUR[:4])
    yield "one offset", safetensors_bytes({"w": item(offsets=(0,))})
    yield "text for an offset", safetensors_bytes({"w": item(offsets=("0", "16"))})
    yield "unknown dtype", safetensors_bytes({"w": item(dtype="F33")})
    yield "dtype that is no text", safetensors_bytes({"w": item(dtype=7)})
    yield "an unknown field", safetensors_bytes({"w": {**item(), "extra": 1}})
    yield "a missing field", safetensors_bytes({"w": {"dtype": "F32", "shape": [4]}})
    yield "metadata that is not text", safetensors_bytes({"__metadata__": {"a": 1}, "w": item()})
    yield "nested 100,000 deep", safetensors_bytes(b'{"a":' * 100_000)
    yield (
        "14,000 names",
        safetensors_bytes(json.dumps({f"{i:x}": item((0,), (0, 0)) for i in range(14_000)}).encode(), b""),
    )
    yield "complex", safetensors_bytes({"w": item((2,), dtype="C64")})
    yield "float8", safetensors_bytes({"w": item((16,), dtype="F8_E4M3")})
    yield "name with control characters", safetensors_bytes({"w\x1b[2J\n": item()})


def others() -> Iterator[tuple[str, bytes]]:
    """(what it is, a whole file that is no checkpoint at all)."""
    yield "empty file", b""
    yield "one byte", b"P"
    yield "text", b"hello, these are not weights\n"
    yield "zeros", bytes(100_000)
    yield "web page", b"<!DOCTYPE html><html></html>"
    yield "gzip", b"\x1f\x8b\x08\0" + bytes(100)
    yield "tar", bytes(257) + b"ustar\0" + bytes(500)
    yield "LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    yield "HDF5", b"\x89HDF\r\n\x1a\n" + bytes(200)
    yield "plain pickle", P.whole(GOOD)
    yield "JSON", b'{"a": 1}'
    yield "JSON list index", b'{"weight_map": ["a"]}'
    yield "index without shards", b'{"weight_map": {}}'
    yield "index nested deep", b'{"a":' * 100_000
    yield "legacy cut in the pickle", checkpoint_legacy(GOOD)[:80]
    yield "legacy cut in the values", checkpoint_legacy(GOOD)[:-1]
    yield "legacy without values", checkpoint_legacy(GOOD, {})
    yield "legacy with another storage", checkpoint_legacy(GOOD, {"1": FOUR})
    yield "legacy with a shorter storage", checkpoint_legacy(GOOD, {"0": FOUR[:12]})
    yield "legacy text that claims 4 GB", checkpoint_legacy(b"X\xff\xff\xff\xff")
    yield "legacy frame that claims exabytes", checkpoint_legacy(b"\x95" + struct.pack("<Q", 1 << 60))
    yield "legacy of version 1002", checkpoint_legacy(GOOD).replace(P.number(1001), P.number(1002))
    doubled = b"Nq\0" + b"".join(b"0h%ch%c\x86q%c" % (i, i, i + 1) for i in range(100))
    whole = checkpoint_legacy(GOOD)
    keys = P.whole(b"](" + P.text("0") + b"e")
    yield "legacy with keys that double", whole.replace(keys, P.whole(b"](" + doubled + b"e"))
    yield "legacy with keys that are no list", whole.replace(keys, P.whole(P.number(5)))


def all_of_them() -> Iterator[tuple[str, bytes]]:
    """(what it tries, file) of every hostile checkpoint that is one file."""
    for name, body in pickles():
        yield f"zip: {name}", checkpoint_zip(body)
        yield f"legacy: {name}", checkpoint_legacy(body)
    for name, data in zips():
        yield f"archive: {name}", data
    for name, data in safetensors():
        yield f"safetensors: {name}", data
    yield from others()
