"""A Keras model as a shape without values, no larger than is allowed.

What a model's configuration claims may be wrong by orders of magnitude. So before anything is allocated, the model is
built once without values, and building stops where it grows beyond what there are values for.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

_LAYERS_PER_VARIABLE = 10  # far more than any model has


class TooLarge(ValueError):
    """The model has more variables or layers than was allowed."""


class _Variables(list):
    """The list on which Keras notes variables that have no value yet."""

    def __init__(self, limit: int):
        super().__init__()
        self._limit = limit

    def append(self, variable: Any) -> None:
        super().append(variable)
        if len(self) > self._limit:
            raise TooLarge("it has far more variables than there are values for")


class _Names(defaultdict):
    """The table from which Keras takes a name for every new layer."""

    def __init__(self, limit: int):
        super().__init__(int)
        self._left = limit

    def __setitem__(self, name: str, count: int) -> None:
        super().__setitem__(name, count)
        self._left -= 1
        if self._left < 0:
            raise TooLarge("it has far more layers than there are values for")


def abstract(build: Callable[[], Any], variables: int) -> Any:
    """What `build` returns, its variables known by shape and dtype but never allocated.

    Under a stateless scope Keras defers every initial value and keeps the variables in a list, to fill them at the end
    of some later scope. These will never be filled, so the list is one of our own.

    Raises:
        TooLarge: there are more than so many variables, or layers out of all proportion to them.
    """
    import keras
    from keras.src.backend.common import global_state

    ours = {
        "uninitialized_variables": _Variables(variables),
        "object_name_uids": _Names(1000 + _LAYERS_PER_VARIABLE * variables),
    }
    theirs = {name: global_state.get_global_attribute(name) for name in ours}
    try:
        for name, table in ours.items():
            global_state.set_global_attribute(name, table)
        with keras.StatelessScope(initialize_variables=False):
            return build()
    finally:
        for name, table in theirs.items():
            global_state.set_global_attribute(name, table)
