"""The TensorFlow side of every pair: Keras models, and the sampling ops they are built on.

Nothing here imports torch, and importing this package does not import TensorFlow. Each folder beside the rooms holds a
network: its `BUILDERS` say what `create` builds, its `SIGNATURES` (where it has any) what an export holds, each as
name -> "module:callable"; `AXES` tells of the latter, without the model, name -> {part: axes}.
"""

import pkgutil
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

_ROOMS = ("layers", "ops", "pictures", "runtime", "segmenting")
_registered: dict[str, str | Callable[..., Any]] = {}


def __getattr__(name: str) -> Any:
    # Loading needs h5py; whoever only asks for names should not wait for it.
    if name in ("WeightsError", "load", "save"):
        return getattr(import_module(f"tf_models.runtime.{'saving' if name == 'save' else 'loading'}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def names() -> list[str]:
    """Names of the models that `create` builds, sorted."""
    return sorted({*builders(), *_registered})


def register(name: str, builder: str | Callable[..., Any]) -> None:
    """Let `create(name)` and `load` build a model: `builder` is a callable, or its place ("module:callable").

    The callable takes the configuration and returns a built keras.Model.
    """
    _registered[name] = builder


def forget(name: str) -> None:
    """Undo `register`."""
    _registered.pop(name, None)


def create(name: str, **config: Any) -> Any:
    """Build the Keras model `name`, all its variables made, with fresh weights.

    Raises:
        ValueError: no such name; the known ones are listed.
    """
    builder = _registered.get(name) or builders().get(name)
    if builder is None:
        from tf_models.runtime.mistaken import meant

        raise ValueError(f"unknown model {name!r}; {meant(name, names())}")
    from tf_models.runtime.saving import created, remember

    if isinstance(builder, str):
        module, _, attribute = builder.partition(":")
        builder = getattr(import_module(module), attribute)
    model = builder(**config)
    remember(model, created(name, config, ours=name not in _registered))
    return model


def builders() -> dict[str, str]:
    """Name -> place, of the models that come with this package."""
    return {name: place for network in networks() for name, place in network.BUILDERS.items()}


def networks() -> Iterator[Any]:
    """The folders that hold networks, as modules."""
    for one in pkgutil.iter_modules(__path__):
        if one.ispkg and one.name not in _ROOMS:
            yield import_module(f"{__name__}.{one.name}")
