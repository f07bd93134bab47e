"""The format of a converted `.weights.h5`: where each variable is, what the file says of itself, and its digests.

A file may come from a stranger. So nothing in it is trusted before it is checked: links are not followed, attributes
and datasets are read only where they are plain and as long as the file really is.
"""

import contextlib
import io
import json
import os
import stat
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tf_models.runtime.mistaken import kind, near

FORMAT = 1
PREFIX = "weightbridge_"  # of the root attributes that carry provenance
SEAL = "seal"  # the attribute with the digest of all others and of every dataset's digest
DIGEST = "crc32"  # the attribute of each dataset with the digest of its values
DTYPES = ("float32", "float16")
_LONGEST_TEXT = 60_000  # HDF5 holds no longer attribute
_LONGEST_PATH = 1_000
_MOST_OBJECTS = 100_000
LEVELS = ("none", "lossless", "partial", "full", "train")  # of proof, each with what the one before shows
SUFFIX = ".weights.h5"
_NO_WEIGHTS = {
    "checkpoint": "a checkpoint of torch; `convert` makes the weights file of it, and that is meant here",
    "picture": "a picture",
}


class WeightsError(ValueError):
    """A weights file is not what it should be: one printable line that says what is wrong."""

    exit_code = 1


class NoProvenance(WeightsError):
    """A weights file that the converter did not write."""


def provenance(path: str | os.PathLike) -> dict[str, Any]:
    """What a converted file says of itself.

    That is its format, version, model, config, source, source_sha256, dialect, dtype and proof, and its origin: how the
    checkpoint spelled what the rest does not tell (files of older converters have none). `trained` says since when the
    values are no longer the checkpoint's, where they are not.

    Raises:
        WeightsError: not an HDF5 file, not written by the converter, of a newer format, or damaged.
    """
    with opened(path) as file:
        return provenance_of(attributes_of(file))


def listed(path: str | os.PathLike) -> list[tuple[str, tuple[int, ...], str, int]]:
    """(path inside the file, shape, dtype, bytes) of every dataset of any weights file; no value is read.

    Raises:
        WeightsError: not an HDF5 file, damaged, or with parts that lie outside it.
    """
    with opened(path) as file:
        return [
            (place, dataset.shape or (), stored_dtype(dataset), int(dataset.nbytes))
            for place, dataset in datasets(file)
        ]


def check(path: str | os.PathLike, shapes: Mapping[str, tuple[int, ...]], values: bool = True) -> None:
    """See that a converted file holds exactly these datasets, whole and plain, and that the digests are right.

    `values=False` does not read the values, when they have just been compared with what they should be.

    Raises:
        WeightsError: it does not.
    """
    with opened(path) as file:
        attributes = attributes_of(file)
        held = held_by(file, attributes)
        compare(held, shapes, provenance_of(attributes)["model"])
        if values:
            for place, dataset in held.items():
                checked(dataset, place)


@contextlib.contextmanager
def readable(path: str | os.PathLike, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Callable[[str], Any]]:
    """A function that reads the values at a place, of a converted file that holds exactly these datasets.

    Raises:
        WeightsError: it does not hold just these, or a digest is wrong.
    """
    with opened(path) as file:
        attributes = attributes_of(file)
        held = held_by(file, attributes)
        compare(held, shapes, provenance_of(attributes)["model"])
        yield lambda place: checked(held[place], place)


def places(model: Any) -> dict[str, Any]:
    """Dataset path in a weights file -> Keras variable, as this version of Keras lays `model` out.

    Keras alone knows the paths, so it is made to save a file in which every variable holds its own number.
    """
    import h5py
    import keras
    import numpy as np

    variables = model.weights
    memory = _Memory()
    with keras.StatelessScope(initialize_variables=False) as scope:
        for number, variable in enumerate(variables):
            scope.add_update((variable, np.asarray(number, np.int32)))
        model.save_weights(memory)
    with h5py.File(memory, "r") as file:
        return {place: variables[int(dataset[()])] for place, dataset in datasets(file)}


class _Memory(io.BytesIO):
    """A file in memory that has a name Keras accepts."""

    def __str__(self) -> str:
        return "map" + SUFFIX


def datasets(file: Any) -> Iterator[tuple[str, Any]]:
    """(path inside the file, dataset) of every dataset of an open weights file, sorted.

    Raises:
        WeightsError: something in it is a link, lies outside the file, or is neither a group nor a dataset.
    """
    import h5py

    waiting = [("", file)]
    seen = {file.id}
    found = []
    while waiting:
        prefix, group = waiting.pop()
        for name in group:
            place = f"{prefix}/{name}" if prefix else name
            if type(group.get(name, getlink=True)) is not h5py.HardLink:
                raise WeightsError(f"{printable(place)} is a link, which a weights file never holds")
            node = group[name]
            if node.id in seen or len(seen) > _MOST_OBJECTS or len(place) > _LONGEST_PATH:
                raise WeightsError(f"{printable(place)} is reached twice, or beyond what any model has")
            seen.add(node.id)
            if isinstance(node, h5py.Group):
                waiting.append((place, node))
            elif not isinstance(node, h5py.Dataset):
                raise WeightsError(f"{printable(place)} is neither a group nor a dataset")
            elif node.is_virtual or node.external:
                raise WeightsError(f"{printable(place)} keeps its values outside the file")
            else:
                found.append((place, node))
    yield from sorted(found, key=lambda item: item[0])


def stored_dtype(dataset: Any) -> str:
    """The dtype of a dataset's values, as Keras writes it: bfloat16, which HDF5 lacks, is two bytes with a mark.

    The mark is text that may claim any length: it is not read.
    """
    return "bfloat16" if dataset.dtype.str == "|V2" and "dtype" in dataset.attrs else str(dataset.dtype)


def digest(place: str, values: Any) -> int:
    """CRC-32 of a dataset's values where they stand: the same values in another's place have another digest."""
    import numpy as np

    header = f"{place} {values.dtype.str} {values.shape} ".encode("utf-8", "surrogateescape")
    return zlib.crc32(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data, zlib.crc32(header))


def seal(attributes: Mapping[str, str | int], digests: Mapping[str, int]) -> int:
    """CRC-32 of all that a file says of itself and of every dataset's digest."""
    return zlib.crc32(json.dumps([sorted(attributes.items()), sorted(digests.items())]).encode())


def sign(file: Any, attributes: Mapping[str, Any], digests: Mapping[str, int]) -> None:
    """Write what an open file says of itself, each dataset's digest beside it, and the digest of all these."""
    import numpy as np

    plain = {
        name: value if isinstance(value, (str, int)) else json.dumps(value, sort_keys=True)
        for name, value in attributes.items()
    }
    plain[SEAL] = seal(plain, digests)
    for name, value in sorted(plain.items()):
        # Text of fixed length: HDF5 makes room for any other by what the file claims of it.
        file.attrs[PREFIX + name] = np.bytes_(value.encode()) if isinstance(value, str) else value
    for place in sorted(digests):
        file[place].attrs[DIGEST] = np.uint32(digests[place])


def compare(held: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], name: str) -> None:
    """See that these are the datasets of the model `name`, each of its shape.

    Raises:
        WeightsError: one is missing, is too much, or has another shape.
    """
    missing = [place for place in shapes if place not in held]
    surplus = [place for place in held if place not in shapes]
    if missing or surplus:
        what = f"lacks {missing[0]}" if missing else f"holds {printable(surplus[0])}, which {name} does not have"
        counts = f"{len(missing)} missing, {len(surplus)} surplus"
        raise WeightsError(f"does not hold the variables of {name}: it {what} ({counts})")
    for place, shape in shapes.items():
        if held[place].shape != tuple(shape):
            raise WeightsError(f"{place} has shape {held[place].shape}, {name} needs {tuple(shape)}")


def held_by(file: Any, attributes: Mapping[str, str | int]) -> dict[str, Any]:
    """Every dataset by its path; each is plain, of the recorded dtype, as long as its shape says, and sealed."""
    held = dict(datasets(file))
    size = os.path.getsize(file.filename)
    dtype = {"float32": "<f4", "float16": "<f2"}.get(str(attributes.get("dtype")))
    for place, dataset in held.items():
        check_plain(dataset, place, size)
        if dataset.dtype.str != dtype:
            told = f"has dtype {printable(str(dataset.dtype))}, which the file does not record"
            raise WeightsError(f"{printable(place)} {told}")
    if sum(dataset.nbytes for dataset in held.values()) > size:
        raise WeightsError("claims more values than it holds")
    digests = {place: int(_attribute(dataset, DIGEST)) for place, dataset in held.items()}
    said = {name: value for name, value in attributes.items() if name != SEAL}
    if attributes.get(SEAL) != seal(said, digests):
        raise WeightsError("what it says of itself does not match its digest; the file is damaged, convert again")
    return held


def check_plain(dataset: Any, place: str, size: int) -> None:
    """See that a dataset is a run of values inside the file, which has `size` bytes.

    Raises:
        WeightsError: it is not.
    """
    import h5py

    layout = dataset.id.get_create_plist()
    if layout.get_layout() != h5py.h5d.CONTIGUOUS or layout.get_nfilters() or dataset.shape is None:
        raise WeightsError(f"{printable(place)} is not stored plainly, as the converter writes it")
    if dataset.nbytes and (dataset.id.get_offset() or size) + dataset.nbytes > size:
        raise WeightsError(f"{printable(place)} claims more values than the file holds")


def checked(dataset: Any, place: str) -> Any:
    """The dataset's values.

    Raises:
        WeightsError: their digest is another.
    """
    values = dataset[()]
    if digest(place, values) != _attribute(dataset, DIGEST):
        raise WeightsError(f"{place} does not match its digest; the file is damaged, convert again")
    return values


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[Any]:
    """The open HDF5 file.

    A WeightsError of the block, and what h5py raises there, becomes a WeightsError that begins with the file's name.
    Any other error of the block says nothing about the file, and stays as it is.
    """
    import h5py

    within = False
    try:
        # Only a regular file: opening a pipe would wait for ever, and so may a device.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise WeightsError("is not a file")
        with h5py.File(path, "r") as file:
            within = True
            yield file
    except WeightsError as error:
        raise type(error)(str(_error(path, str(error)))) from error.__cause__  # what a user's own builder raised
    except Exception as error:  # h5py reports damaged structures by nearly every type that there is
        if within and not _of_h5py(error):
            raise
        if isinstance(error, FileNotFoundError):
            other = near(path, (".h5",))
            hint = f"; did you mean {printable(other)}?" if other else ""
            raise _error(path, f"no such file{hint}") from None
        what = kind(path)
        if what == "keras":
            name = os.path.basename(path)
            out = f"unzip -p {name} model.weights.h5 > {_free(path)}"
            raise _error(path, f"is a Keras archive; take the weights out, and name those: {printable(out)}") from None
        if what != "weights":
            told = f": it is {_NO_WEIGHTS[what]}" if what else ""
            raise _error(path, f"is not a readable HDF5 file{told}") from None
        raise _error(path, f"is damaged ({printable(f'{type(error).__name__}: {error}')})") from None


def _of_h5py(error: Exception) -> bool:
    """Whether it was raised in a call of h5py: compiled modules have frames too, with their names."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__", "").partition(".")[0] == "h5py" for frame, _ in frames)


def _free(path: str | os.PathLike) -> str:
    """A name for the weights of a Keras archive that no file beside it has: often its original has the archive's."""
    stem = os.path.splitext(path)[0]
    tries = (f"{stem}{end}{SUFFIX}" for end in ("", *(f"-{i}" for i in range(2, 1000))))
    return os.path.basename(next(name for name in tries if not os.path.lexists(name)))


def attributes_of(file: Any) -> dict[str, str | int]:
    """The root attributes that carry provenance, as they were written."""
    return {name.removeprefix(PREFIX): _attribute(file, name) for name in file.attrs if name.startswith(PREFIX)}


def _attribute(node: Any, name: str) -> str | int:
    """An attribute that is one whole number, or one text of fixed length.

    Room for any other would be made by what the file claims of it.
    """
    import h5py

    if not h5py.h5a.exists(node.id, name.encode("utf-8", "surrogateescape")):
        raise WeightsError(f"{printable(str(node.name))} has no {name}")
    kept = h5py.h5a.open(node.id, name.encode("utf-8", "surrogateescape"))
    kind = kept.get_type()
    if kept.get_space().get_simple_extent_type() == h5py.h5s.SCALAR:
        if isinstance(kind, h5py.h5t.TypeIntegerID) and kind.get_size() <= 8:
            return int(node.attrs[name])
        if isinstance(kind, h5py.h5t.TypeStringID) and not kind.is_variable_str() and kind.get_size() <= _LONGEST_TEXT:
            try:
                return bytes(node.attrs[name]).decode("utf-8")
            except UnicodeDecodeError:
                raise WeightsError(f"its attribute {printable(name)} is not a text in UTF-8") from None
    raise WeightsError(f"its attribute {printable(name)} is neither a number nor a text")


def provenance_of(attributes: Mapping[str, str | int]) -> dict[str, Any]:
    about: dict[str, Any] = {name: value for name, value in attributes.items() if name != SEAL}
    if "format" not in about or "model" not in about:
        raise NoProvenance(
            "carries no provenance; if Keras saved it after training, name the converted file that its model was "
            "loaded from (--like ORIGINAL, in Python like=), or save the model with tf_models.save(model, path)"
        )
    if about["format"] != FORMAT:
        shown = printable(str(about["format"]))
        raise WeightsError(f"has format {shown}, this version reads {FORMAT}; upgrade weightbridge")
    if about.get("dtype") not in DTYPES or not isinstance(about["model"], str):
        raise WeightsError("does not say what model it holds, and in which dtype")
    if not isinstance(about.get("trained", ""), str):
        raise WeightsError("does not say since when its weights are trained")
    for name in ("config", "proof", *(["origin"] if "origin" in about else [])):
        try:
            about[name] = json.loads(about.get(name, "{}"))
        except (TypeError, ValueError, RecursionError):
            raise WeightsError(f"its {name} is not JSON") from None
        if not isinstance(about[name], dict):
            raise WeightsError(f"its {name} is not a table")
    return about


def _error(path: str | os.PathLike, what: str) -> WeightsError:
    return WeightsError(f"{printable(str(path), 160)}: {what}"[:480])


def printable(text: str, limit: int = 120) -> str:
    text = text[: 4 * limit].encode("unicode_escape").decode("ascii")
    return text if len(text) <= limit else text[: limit - 3] + "..."
