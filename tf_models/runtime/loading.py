"""Load a converted file: check every byte's digest, build the model that the file names, fill every variable once.

The model that its configuration describes is first built without values and compared with what the file holds.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tf_models.runtime.keras_files import as_float32, matched
from tf_models.runtime.saving import described, remember, trained
from tf_models.runtime.weights_format import (
    LEVELS,
    WeightsError,
    attributes_of,
    checked,
    compare,
    held_by,
    opened,
    places,
    printable,
    provenance_of,
)

_SPARE_VARIABLES = 100  # a model may have this many more variables than the file, so that what is missing can be named


def load(path: str | os.PathLike, require: str | None = None, like: str | os.PathLike | None = None) -> Any:
    """Build the Keras model that a converted file names, with the configuration it records, and fill it.

    Nothing but the file is needed, neither torch nor the checkpoint. Either the model is returned whole, every variable
    filled exactly once with values whose digests are right, or an error is raised.

    Args:
        path: the file.
        require: how much must have been proven when it was written, as the file records it: "lossless", "full" (every
            variable, every layer and every output), or "train". Of weights that were trained since, nothing holds.
        like: the converted file that the model was loaded from, where `path` is a file that Keras saved after training:
            with or without an optimizer's state, or of a larger model with this one inside.

    Raises:
        WeightsError: the file is damaged, of another program, does not hold this model's variables, or was proven less.
        ValueError: `require` is none of these words.
    """
    import tf_models
    from tf_models.runtime.abstract import abstract

    with _held(path, require, like) as (about, held, values):
        name, config = about["model"], about["config"]
        try:
            plan = abstract(lambda: tf_models.create(name, **config), _SPARE_VARIABLES + 4 * len(held))
            compare(held, {place: tuple(variable.shape) for place, variable in places(plan).items()}, name)
            model = tf_models.create(name, **config)
            homes = places(model)
        except WeightsError:
            raise
        except Exception as error:
            from tf_models.runtime.blame import where_and_what

            reason = where_and_what(error)
            raise WeightsError(f"records a configuration that {name} cannot be built with: {reason}") from error
        if sorted(map(id, homes.values())) != sorted(map(id, model.weights)):
            raise WeightsError(f"cannot fill every variable of {name} exactly once: Keras does not save them so")
        for place, variable in homes.items():
            variable.assign(values(held[place], place))
    remember(model, about)
    return model


def declared(
    path: str | os.PathLike, require: str | None = None, like: str | os.PathLike | None = None
) -> dict[str, Any]:
    """A converted file's provenance, after all that `load` refuses before it needs TensorFlow.

    Raises:
        WeightsError: it cannot be loaded: damaged, of another program, of a model that is not known, or proven less.
        ValueError: as `load`.
    """
    with _held(path, require, like) as (about, _, _):
        return about


@contextlib.contextmanager
def _held(
    path: str | os.PathLike, require: str | None, like: str | os.PathLike | None
) -> Iterator[tuple[dict[str, Any], dict[str, Any], Callable[[Any, str], Any]]]:
    """(what is known of the weights, place -> dataset, what reads the values of one) of the open file."""
    original = None if like is None else described(like)
    with opened(path) as file:
        if original is None:
            attributes = attributes_of(file)
            about = provenance_of(attributes)
            _check(about, require)
            yield about, held_by(file, attributes), checked
        else:
            about, shapes = original
            held, group = matched(file, shapes, about["model"])
            about = trained(about, group)
            _check(about, require)
            yield about, held, lambda dataset, _place: as_float32(dataset)


def _check(about: Mapping[str, Any], require: str | None) -> None:
    import tf_models

    _required(about, require)
    if about["model"] not in tf_models.names():
        known = ", ".join(tf_models.names())
        raise WeightsError(
            f"holds the model {printable(about['model'])}, which is not known here; known: {known}; a model of your "
            "own program takes the file with model.load_weights"
        )


def _required(about: Mapping[str, Any], require: str | None) -> None:
    if require is None:
        return
    if require not in LEVELS[1:]:
        raise ValueError(f"require: expected one of {', '.join(LEVELS[1:])}, got {require!r}")
    proof = about["proof"]
    level = proof.get("level")
    if level is None:  # an older converter's, which did not say what its proof covered
        level = "lossless" if proof.get("lossless") is True else "none"
    if "trained" in about:
        before = f", and proven to the level {printable(str(proof['before']))} before" if "before" in proof else ""
        told = f"holds weights that were trained {printable(about['trained'])}{before}"
        raise WeightsError(f"{told}; no proof holds of them, so load it without `require`")
    if level not in LEVELS or LEVELS.index(level) < LEVELS.index(require):
        raise WeightsError(
            f"was proven to the level {printable(str(level))} when it was converted, not {require}: convert it again "
            f"with --verify {require}"
        )
