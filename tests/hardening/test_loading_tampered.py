"""A converted file that is not what the converter wrote is refused, by tf_models.load as by inspect."""

import contextlib
import os
import re
import resource
import shutil
import struct
import time

import h5py
import keras
import numpy as np
import pytest

import converter
import tf_models
from tests.support import converted
from tests.support.converted import PAIR, set_config, tampered
from tf_models.runtime.weights_format import DIGEST, PREFIX, SEAL, listed, places, provenance


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    converter.register(PAIR)
    return converted.convert(tmp_path_factory.mktemp("converted"))


@pytest.fixture
def path(original, tmp_path):
    return shutil.copy(original, tmp_path / "w.weights.h5")


def first(file):
    """Path of some dataset."""
    return min(place for place, *_ in listed(file.filename))


def refused(path, reason):
    """tf_models.load raises one printable line."""
    with pytest.raises(tf_models.WeightsError, match=reason) as caught:
        tf_models.load(path)
    text = str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert text.isprintable()
    assert 20 < len(text) <= 490


def test_what_was_written_is_loaded(path):
    model = tf_models.load(path)
    with h5py.File(path) as file:
        for place, variable in places(model).items():
            np.testing.assert_array_equal(np.asarray(variable), file[place][()])
    assert len(places(model)) == len(model.variables) == 8


def test_half_precision_is_widened_when_loaded(tmp_path):
    path = converted.convert(tmp_path, seed=3, dtype="float16")
    with h5py.File(path) as file:
        for place, variable in places(tf_models.load(path)).items():
            assert file[place].dtype == np.float16
            np.testing.assert_array_equal(np.asarray(variable), file[place][()].astype(np.float32))


def test_keras_loads_it_as_well(path):
    model = converted.build_tf()
    model.load_weights(path)
    for ours, theirs in zip(tf_models.load(path).variables, model.variables, strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_every_flipped_bit_of_a_value_is_noticed(path):
    with h5py.File(path) as file:
        spans = [(file[place].id.get_offset(), file[place].nbytes) for place, *_ in listed(path)]
    data = path.read_bytes()
    places_ = [offset + i for offset, length in spans for i in range(0, length, 7)]
    assert len(places_) > 50
    for number, place in enumerate(places_):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << number % 8]) + data[place + 1 :])
        refused(path, "does not match its digest")


def a_link(kind):
    def change(file):
        place = first(file)
        shutil.copy(file.filename, file.filename + ".other")
        del file[place]
        links = {
            "external": h5py.ExternalLink(file.filename + ".other", place),
            "soft": h5py.SoftLink("/elsewhere"),
        }
        file[place] = links[kind]

    return change


def hard_link(file):
    place = first(file)
    other = next(p for p, shape, *_ in listed(file.filename) if p != place and shape == file[place].shape)
    del file[other]
    file[other] = file[place]


def group_loop(file):
    file["loop"] = file["/"]


def replace(place, file, *args, **options):
    del file[place]
    file.create_dataset(place, *args, **options)


def external_storage(file):
    place = first(file)
    shape, size = file[place].shape, file[place].nbytes
    replace(place, file, shape, "<f4", external=[("/etc/hostname", 0, size)])


def virtual(file):
    place = first(file)
    shape = file[place].shape
    layout = h5py.VirtualLayout(shape, "<f4")
    layout[...] = h5py.VirtualSource("/etc/hostname", "x", shape)
    del file[place]
    file.create_virtual_dataset(place, layout)


def stored(**options):
    def change(file):
        place = first(file)
        replace(place, file, data=file[place][()], **options)

    return change


def bomb(file):
    replace(first(file), file, (1 << 40,), "<f4", chunks=(1 << 20,), compression="gzip", fillvalue=1)


def never_written(file):
    replace(first(file), file, (1 << 40,), "<f4")


def typed(dtype):
    def change(file):
        place = first(file)
        replace(place, file, data=np.zeros(file[place].shape, dtype))

    return change


def swapped(file):
    """Two groups of the same shapes change places, with all their digests."""
    file.move("dense/dense", "dense/spare")
    file.move("dense/dense_1", "dense/dense")
    file.move("dense/spare", "dense/dense_1")


def swapped_values(file):
    one, two = file["dense/dense/vars/0"], file["dense/dense_1/vars/0"]
    for node, other in ((one, two[()]), (two, one[()])):
        node[...] = other
    digests = one.attrs[DIGEST], two.attrs[DIGEST]
    two.attrs[DIGEST], one.attrs[DIGEST] = digests


def lacking(file):
    del file[first(file)]


def surplus(file):
    file["dense/dense_2/vars/0"] = np.zeros(3, np.float32)


def reshaped(file):
    place = first(file)
    replace(place, file, data=file[place][()].reshape(-1))


def null_space(file):
    replace(first(file), file, data=h5py.Empty("<f4"))


def named_type(file):
    file["type"] = np.dtype("<f4")


def vlen_text(file):
    file.attrs[PREFIX + "config"] = "{}"


def attribute(name, value):
    def change(file):
        file.attrs[PREFIX + name] = value

    return change


def without(name):
    def change(file):
        del file.attrs[PREFIX + name]

    return change


def config(**values):
    return lambda file: set_config(file, **values)


TAMPERED = {
    "external link": (a_link("external"), "is a link"),
    "soft link": (a_link("soft"), "is a link"),
    "hard link": (hard_link, "is reached twice"),
    "a loop of groups": (group_loop, "is reached twice"),
    "values in another file": (external_storage, "keeps its values outside the file"),
    "virtual dataset": (virtual, "keeps its values outside the file"),
    "compressed": (stored(compression="gzip", chunks=True), "not stored plainly"),
    "chunked": (stored(chunks=True), "not stored plainly"),
    "checksummed by HDF5": (stored(fletcher32=True, chunks=True), "not stored plainly"),
    "terabytes that compress well": (bomb, "not stored plainly"),
    "terabytes that were never written": (never_written, "claims more values than the file holds"),
    "doubles": (typed("<f8"), "has dtype float64"),
    "whole numbers": (typed("<i4"), "has dtype int32"),
    "big-endian": (typed(">f4"), "has dtype >f4"),
    "complex": (typed("<c8"), "has dtype complex64"),
    "texts": (typed("S4"), "has dtype"),
    "no values": (null_space, "not stored plainly"),
    "a named type": (named_type, "neither a group nor a dataset"),
    "a dataset less": (lacking, "lacks|does not match its digest"),
    "a dataset more": (surplus, "holds dense/dense_2/vars/0, which stack does not have"),
    "another shape": (reshaped, r"has shape \(\d+,\), stack needs"),
    "an unknown model": (
        attribute("model", np.bytes_(b"nothing\x1b[31m\n")),
        r"nothing\\x1b\[31m\\n, which is not",
    ),
    "a model that is a number": (attribute("model", 7), "does not say what model"),
    "a newer format": (attribute("format", 2), "has format 2, this version reads 1; upgrade"),
    "a format of another kind": (attribute("format", np.bytes_(b"1")), "has format 1, this version reads 1"),
    "a config that is no JSON": (attribute("config", np.bytes_(b"{")), "config is not JSON"),
    "a config nested deep": (attribute("config", np.bytes_(b"[" * 50_000)), "config is not JSON"),
    "a config that is a list": (attribute("config", np.bytes_(b"[]")), "config is not a table"),
    "a config that is a number": (attribute("config", 3), "config is not JSON"),
    "text without a fixed length": (vlen_text, "neither a number nor a text"),
    "an attribute of many numbers": (attribute("format", np.arange(1000)), "neither a number nor a text"),
    "an attribute without a value": (attribute("format", h5py.Empty("<i4")), "neither a number nor a text"),
    "an unknown option": (config(breadth=3), "cannot be built with"),
    "an option of another kind": (config(width="six"), "cannot be built with"),
    "an option that the model refuses": (
        config(width=0),
        r"cannot be built with: \S*converted\.py:\d+: ValueError: width",
    ),
    "another width": (config(width=5), "has shape"),
    "another depth": (config(depth=1), "which stack does not have"),
    "a greater depth": (config(depth=3), "lacks|cannot be built with"),
    "an endless depth": (config(depth=10**9), "far more layers than there are values for"),
    "an endless width": (config(width=10**9), "has shape"),
    "an immense width": (config(width=10**30), "has shape|cannot be built with"),
}


# There are no digests that would be right of these; whoever tries fails so, when the file is already changed.
UNSIGNABLE = {
    "virtual dataset": OSError,
    "no values": TypeError,
    "an attribute of many numbers": TypeError,
    "an attribute without a value": TypeError,
}


@pytest.mark.parametrize("name", TAMPERED)
@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_tampered_files_are_refused(path, name, signed):
    change, reason = TAMPERED[name]
    original = path.read_bytes()
    with contextlib.suppress(
        *([UNSIGNABLE[name]] if signed and name in UNSIGNABLE else [])
    ):  # as h5py's version has it
        tampered(path, change, signed)
    assert path.read_bytes() != original
    began = time.process_time()
    refused(path, reason if signed else f"{reason}|does not match its digest|has no crc32")
    assert time.process_time() - began < 10


@pytest.mark.parametrize("change", [swapped, swapped_values], ids=["groups", "values"])
def test_what_changed_places_is_noticed_though_every_digest_moved_along(path, change):
    refused(tampered(path, change), "does not match its digest")


@pytest.mark.parametrize(
    "change",
    [config(width=6.0), attribute("source", np.bytes_(b"other.pth")), attribute("source_sha256", np.bytes_(b"0" * 64)),
     attribute("extra", 1), attribute(SEAL, 1), without(SEAL), without("proof")],
)  # fmt: skip
def test_what_the_file_says_of_itself_is_sealed(path, change):
    refused(tampered(path, change), "what it says of itself does not match its digest")


def test_a_dataset_without_digest(path):
    def change(file):
        del file[first(file)].attrs[DIGEST]

    refused(tampered(path, change), "has no crc32")


def test_a_plain_keras_file_gets_a_hint(tmp_path):
    converted.build_tf().save_weights(tmp_path / "plain.weights.h5")
    refused(tmp_path / "plain.weights.h5", "carries no provenance; if Keras saved it after training, name")
    held = converter.inspect(tmp_path / "plain.weights.h5")
    assert len(held) == 8
    assert held.notes[0].startswith("no provenance: not written by weightbridge; --like ORIGINAL")


@pytest.mark.parametrize("length", [0, 1, 7, 8, 100, 1000, -1])
def test_a_cut_file(path, length):
    path.write_bytes(path.read_bytes()[:length])
    refused(path, "is not a readable HDF5 file|is damaged|claims more|digest")


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.weights.h5")
    for place in (tmp_path / "pipe.weights.h5", tmp_path, "/dev/zero"):
        refused(place, "is not a file")
    refused(tmp_path / "none.weights.h5", "no such file")
    (tmp_path / "text.weights.h5").write_text("hello")
    refused(tmp_path / "text.weights.h5", "is not a readable HDF5 file")
    refused("a\0b" + "x" * 20, "null|readable")


def test_a_length_that_lies_in_the_structure(path):
    """A dimension is patched in the file's own bytes, where HDF5 keeps it."""
    data = path.read_bytes()
    dims = struct.pack("<QQ", 6, 6)
    assert data.count(dims) >= 2
    path.write_bytes(data.replace(dims, struct.pack("<QQ", 1 << 40, 6), 1))
    refused(path, "claims more values than the file holds|is damaged")


def test_nothing_is_built_when_the_file_is_refused(path, monkeypatch):
    tampered(path, lacking, signed=True)
    assign = keras.Variable.assign
    filled = []
    monkeypatch.setattr(keras.Variable, "assign", lambda self, value: (filled.append(self), assign(self, value)))
    refused(path, "lacks")
    assert filled == []


def test_a_model_whose_variables_keras_does_not_all_save(path):
    """A layer under a method's name is live, but silently not saved."""

    class Hiding(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.quantize = keras.layers.Dense(2)

        def build(self, shape):
            self.quantize.build(shape)

    tf_models.register("stack", lambda **config: converted.build_tf(**config, more=Hiding))
    try:
        refused(path, "cannot fill every variable of stack exactly once")
    finally:
        tf_models.register("stack", converted.build_tf)


INSPECTED = ("external link", "soft link", "hard link", "a loop of groups", "virtual dataset", "values in another file",
             "a newer format", "text without a fixed length", "a named type")  # fmt: skip


@pytest.mark.parametrize("name", INSPECTED)
def test_inspect_refuses_what_it_must_not_follow(path, name):
    change, reason = TAMPERED[name]
    with pytest.raises(converter.ConversionError, match=reason):
        converter.inspect(tampered(path, change))


def test_inspect_lists_without_reading(path):
    held = converter.inspect(tampered(path, bomb))
    assert max(entry.nbytes for entry in held) == 4 << 40
    assert held.provenance["model"] == provenance(path)["model"] == "stack"


def test_inspect_knows_keras_bfloat16(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, dtype="bfloat16")])
    model.save_weights(tmp_path / "half.weights.h5")
    assert {entry.dtype for entry in converter.inspect(tmp_path / "half.weights.h5")} == {"bfloat16"}


def test_inspect_makes_no_room_for_text_of_a_length_that_lies(tmp_path):
    with h5py.File(tmp_path / "lying.weights.h5", "w") as file:
        file.create_dataset("x", data=np.zeros(4, "f4")).attrs["dtype"] = "A" * 37
    data = (tmp_path / "lying.weights.h5").read_bytes()
    place = re.search(rb"\x25\0\0\0.{8}\x01\0\0\0", data, re.DOTALL).start()  # length, heap, index
    lying = data[:place] + b"\xf0\xff\xff\xff" + data[place + 4 :]
    (tmp_path / "lying.weights.h5").write_bytes(lying)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    [entry] = converter.inspect(tmp_path / "lying.weights.h5")
    assert entry.dtype == "float32"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KB


def test_verify_refuses_a_mark_that_keras_would_read(original, path):
    def mark(file):
        file[first(file)].attrs["dtype"] = "float32"

    with pytest.raises(converter.ConversionError, match="is marked with a dtype, as only bfloat16 is"):
        converter.verify("stack", original.with_name("0.pth"), tampered(path, mark), level="lossless")


def test_inspect_refuses_long_paths(tmp_path):
    with h5py.File(tmp_path / "long.weights.h5", "w", libver="latest") as file:
        group = file.create_group("a" * 59_000)
        for number in range(50):
            group[str(number)] = 1.0
    with pytest.raises(converter.ConversionError, match="beyond what any model has"):
        converter.inspect(tmp_path / "long.weights.h5")
