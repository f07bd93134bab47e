"""A Keras model as a table of variables by attribute path.

Keras's own `variable.path` changes with every instance (`dense_47/kernel`); attribute paths do not, and they are what
the torch side's names are.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
from keras.src.backend.common import global_state

_NAMES = "object_name_uids"


@contextmanager
def fresh_names() -> Iterator[None]:
    """In the block Keras names layers as in a new process: `dense`, `dense_1`. Its counts before are there again after.

    Layers of a Functional model are reached by their names, which are to be the same whenever it is built.
    """
    table = global_state.get_global_attribute(_NAMES, defaultdict(int), set_to_default=True)
    kept = dict(table)
    table.clear()  # and not another one in its place, because this one may have a limit
    try:
        yield
    finally:
        table.clear()
        dict.update(table, kept)
        global_state.set_global_attribute(_NAMES, table)  # `keras.backend.clear_session` takes it away


def by_path(model: Any) -> dict[str, Any]:
    """Attribute path -> variable, of every weight of the model: `transformer.layers.0.norm1.gamma`.

    A layer in a list or a Sequential is reached by its index, one in a dict or a Functional model by its name. A weight
    that can be reached by several paths stands under the first; one that can be reached by private attributes alone
    under these.
    """
    weights = {id(weight) for weight in model.weights}
    found: dict[int, tuple[str, Any]] = {}
    for private in (False, True):
        if len(found) < len(weights):
            for path, variable in _walk(model, "", weights, set(), private):
                found.setdefault(id(variable), (path, variable))
    return dict(found.values())


def layer_at(model: Any, path: str) -> Any:
    """The layer that `by_path` reaches by `path`, or None."""
    if not path:
        return model
    for word, child in _children(model, private=True):
        # A layer of a Functional model may have dots in its name.
        if path == word or path.startswith(f"{word}."):
            found = layer_at(child, path[len(word) + 1 :])
            if found is not None:
                return found
    return None


def layers_by_path(model: Any) -> dict[str, Any]:
    """Path -> layer, of every layer, each under the first of its paths, as `by_path` finds them; "" is the model."""
    found: dict[str, Any] = {}
    seen: set[int] = set()

    def walk(node: Any, path: str, private: bool) -> None:
        if id(node) in seen:
            return
        seen.add(id(node))
        if isinstance(node, keras.Layer) and not any(node is one for one in found.values()):
            found[path] = node
        for word, child in _children(node, private):
            if isinstance(child, (list, tuple, dict, keras.Layer)):
                walk(child, f"{path}.{word}" if path else word, private)

    for private in (False, True):
        seen.clear()
        walk(model, "", private)
    return found


def layers_of(model: Any, path: str, parts: Sequence[str]) -> dict[str, Any]:
    """The layers at these paths below `path`, or the one at `path` itself, under ""."""
    return {part: layer_at(model, f"{path}.{part}" if path and part else path or part) for part in parts or ("",)}


def _walk(node: Any, path: str, weights: set[int], above: set[int], private: bool) -> Iterator[tuple[str, Any]]:
    if id(node) in weights:
        yield path, node
    elif id(node) not in above:
        for word, child in _children(node, private):
            yield from _walk(child, f"{path}.{word}" if path else word, weights, above | {id(node)}, private)


# What Keras keeps of every layer in private attributes: lists of what is reached by other paths, in another order.
_BOOKKEEPING = frozenset(
    "_layers _metrics _trainable_variables _non_trainable_variables _seed_generators _losses _loss_ids _tracker "
    "_functional _inbound_nodes _outbound_nodes _parent_path _operations _operations_by_depth _nodes _inputs _outputs "
    "_compile_metrics _loss_tracker _saved_model_inputs_spec _auto_config _lock".split()
)

_TRACKING = ("_self_unconditional_", "_self_name_based_", "_self_saveable_")  # TensorFlow's of the same sort


def _children(node: Any, private: bool = False) -> Iterator[tuple[str, Any]]:
    if isinstance(node, (list, tuple)):
        for index, child in enumerate(node):
            yield str(index), child
    elif isinstance(node, dict):
        for key, child in node.items():
            yield str(key), child
    elif isinstance(node, keras.Layer):
        if isinstance(node, keras.Sequential):
            yield from ((str(index), layer) for index, layer in enumerate(node.layers))
        elif any(base.__name__ == "Functional" for base in type(node).__mro__):
            yield from ((layer.name, layer) for layer in node.layers)
        for attribute, child in list(vars(node).items()):
            public = attribute.lstrip("_")
            if attribute == public or _shown_as(node, public):
                yield public, child
            elif private and attribute not in _BOOKKEEPING and not attribute.startswith(_TRACKING):
                yield attribute, child


def _shown_as(node: Any, name: str) -> bool:
    """The layer's own class shows its private attribute under the public name, as Dense does with `_kernel`.

    What every layer or model has (`layers`, `trainable_variables`) is Keras's bookkeeping, not a path.
    """
    return isinstance(getattr(type(node), name, None), property) and not hasattr(keras.Model, name)
