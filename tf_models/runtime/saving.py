"""Save a model after training, with what is known of it; and give that to a file which Keras saved.

What a converted file said of itself is kept for as long as its model lives, whatever is trained or built around it.
"""

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from tf_models.runtime.keras_files import as_float32, matched
from tf_models.runtime.weights_format import (
    FORMAT,
    SUFFIX,
    WeightsError,
    attributes_of,
    digest,
    held_by,
    opened,
    places,
    printable,
    provenance_of,
    sign,
)

FRESH = "from fresh weights"  # of a model that was created, and not loaded
_KERAS_OWN = ("dtype", "trainable")  # arguments of every model that say nothing of its variables
_SPARE_VARIABLES = 1000
_FULL = os.strerror(errno.ENOSPC)
_known: "WeakKeyDictionary[Any, dict[str, Any]]" = WeakKeyDictionary()


def remember(model: Any, about: Mapping[str, Any]) -> None:
    """Keep what is known of a model: what `provenance` gives of the file that it was loaded from."""
    with contextlib.suppress(TypeError):  # a user's builder may return anything, and is told so elsewhere
        _known[model] = dict(about)


def created(name: str, config: Mapping[str, Any], ours: bool) -> dict[str, Any]:
    """What is known of a model that was built with fresh weights; `ours`: it is one of this package's."""
    said = {key: value for key, value in config.items() if not (ours and key in _KERAS_OWN)}
    return {"format": FORMAT, "model": name, "config": said, "origin": {}, "proof": {}, "trained": FRESH}


def trained(about: Mapping[str, Any], group: str = "") -> dict[str, Any]:
    """What is known of the weights after training: the ancestry stays, and no proof does.

    `group` is where they were in the file of a larger model.
    """
    from importlib.metadata import version

    proof = about["proof"]
    before = proof.get("before", proof.get("level", "lossless" if proof.get("lossless") is True else "none"))
    since = about.get("trained", "after the conversion")
    within = f", as the part {printable(group)} of a larger model" if group else ""
    return {
        **about,
        "version": version("weightbridge"),
        "dtype": "float32",
        "proof": {"level": "none", "lossless": False, "before": before},
        "trained": since + within,
    }


def save(model: Any, path: str | os.PathLike, overwrite: bool = False) -> Path:
    """Write a trained model's weights as a converted file: `load`, `export`, `segment` and `restore` take it.

    The file says what model it holds, of what checkpoint it was before, and that it was trained since: no proof of the
    conversion holds of its values. It holds neither an optimizer's state nor other models around this one.

    Args:
        model: what `load` or `create` returned, after any training; by itself or inside a larger model.
        path: ends in `.weights.h5`.
        overwrite: replace an existing file.

    Returns: the path.

    Raises:
        WeightsError: nothing is known of the model, its variables are no longer those it had, or the file cannot be
            written. Nothing is left of it.
    """
    import h5py

    import tf_models
    from tf_models.runtime.abstract import abstract

    path = Path(path).expanduser()
    about = trained(_known_of(model))
    _check_config(about)
    with _appearing(path, overwrite) as temporary:
        name, config = about["model"], about["config"]
        plan = abstract(lambda: tf_models.create(name, **config), _SPARE_VARIABLES + len(model.weights))
        shapes = {place: tuple(variable.shape) for place, variable in places(plan).items()}
        plain = temporary.with_name("plain" + SUFFIX)
        model.save_weights(plain)
        with h5py.File(plain, "r") as file:
            try:
                held, group = matched(file, shapes, name)
                if group:
                    raise WeightsError(f"holds {name} as a part of itself ({printable(group)})")
            except WeightsError as error:
                raise WeightsError(
                    f"the model is no longer the {name} that was loaded or created, so it is not saved: it "
                    f"{str(error).removeprefix('it ')}"[:480]
                ) from None
            _write(temporary, held, about)
    return path


def known_like(path: str | os.PathLike, like: str | os.PathLike) -> dict[str, Any]:
    """What is known of the trained weights in a file that Keras saved, when `like` holds their model.

    Raises:
        WeightsError: `like` is no converted file, or the other does not hold the variables of its model.
    """
    about, shapes = described(like)
    with opened(path) as file:
        return trained(about, matched(file, shapes, about["model"])[1])


def adopt(path: str | os.PathLike, like: str | os.PathLike, output: Path) -> None:
    """Write to the new file `output` the values of a file that Keras saved, with what `like` says of their model.

    Raises:
        WeightsError: as `known_like`.
    """
    about, shapes = described(like)
    with opened(path) as file:
        held, group = matched(file, shapes, about["model"])
        _write(output, held, trained(about, group))


def described(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """(what a converted file says of itself, place -> shape of every dataset).

    Raises:
        WeightsError: it is none, or is damaged.
    """
    with opened(path) as file:
        attributes = attributes_of(file)
        about = provenance_of(attributes)
        return about, {place: dataset.shape for place, dataset in held_by(file, attributes).items()}


def _known_of(model: Any) -> dict[str, Any]:
    with contextlib.suppress(TypeError):
        if model in _known:
            return _known[model]
    inner = [layer for layer in getattr(model, "_flatten_layers", list)() if layer in _known]
    if inner:
        names = ", ".join(f"{layer.name} ({_known[layer]['model']})" for layer in inner[:3])
        raise WeightsError(f"the model is not one that was loaded; what was is inside it, save that: {names}")
    raise WeightsError(
        "the model comes neither from tf_models.load nor from tf_models.create, so there is nothing to record of it (a "
        "clone is another model): give its values to the one that was loaded, by set_weights, and save that"
    )


def _check_config(about: Mapping[str, Any]) -> None:
    for key, value in about["config"].items():
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            told = f"{about['model']} was created with {printable(key)}={printable(repr(value), 60)}"
            raise WeightsError(f"{told}, which a file cannot record") from None


def _write(path: Path, held: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write the datasets' values one after another, in float32, and sign them."""
    import h5py

    digests = {}
    with h5py.File(path, "w") as file:
        for place in sorted(held):
            values = as_float32(held[place])
            file.create_dataset(place, data=values)
            digests[place] = digest(place, values)
        sign(file, about, digests)


@contextlib.contextmanager
def _appearing(path: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary file beside `path` that takes its name, whole and synced, when the block ends well."""
    shown = printable(str(path), 160)

    def look() -> None:
        if path.exists() and not overwrite:
            raise WeightsError(f"{shown} exists; overwrite=True replaces it")

    if not path.name.lower().endswith(SUFFIX):
        raise WeightsError(f"{shown} must end in {SUFFIX}")
    look()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            temporary = Path(folder, path.name)
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file)
            look()
            os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # h5py tells of a full disk by either
        if isinstance(error, RuntimeError) and _FULL not in str(error):
            raise
        reason = "the disk is full" if _FULL in str(error) else getattr(error, "strerror", None) or str(error)
        raise WeightsError(f"{shown} cannot be written: {printable(reason)}") from None
