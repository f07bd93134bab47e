"""The torch side of every pair: reference modules whose state dicts carry the canonical names.

Nothing here imports TensorFlow, and importing this package does not import torch. Each folder holds a network: its
`BUILDERS` say what `create` builds, as name -> "module:callable".
"""

import difflib
import pkgutil
from collections.abc import Callable
from importlib import import_module
from typing import Any

_registered: dict[str, str | Callable[..., Any]] = {}


def names() -> list[str]:
    """Names of the models that `create` builds, sorted."""
    return sorted({*_builders(), *_registered})


def register(name: str, builder: str | Callable[..., Any]) -> None:
    """Let `create(name)` build a model: `builder` is a callable, or where to find one ("module:callable").

    The callable takes the configuration and returns a torch.nn.Module.
    """
    _registered[name] = builder


def forget(name: str) -> None:
    """Undo `register`."""
    _registered.pop(name, None)


def create(name: str, **config: Any) -> Any:
    """Build the torch reference `name` with fresh weights.

    Raises:
        ValueError: no such name; the known ones are listed.
    """
    builder = _registered.get(name) or _builders().get(name)
    if builder is None:
        near = difflib.get_close_matches(name, names(), 1, 0.75)
        meant = f"did you mean {near[0]}? known" if near else "known"
        raise ValueError(f"unknown model {name!r}; {meant}: {', '.join(names())}")
    if isinstance(builder, str):
        module, _, attribute = builder.partition(":")
        builder = getattr(import_module(module), attribute)
    return builder(**config)


def _builders() -> dict[str, str]:
    networks = [import_module(f"{__name__}.{one.name}") for one in pkgutil.iter_modules(__path__) if one.ispkg]
    return {name: place for network in networks for name, place in network.BUILDERS.items()}
