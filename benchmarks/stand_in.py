"""A pair whose Keras model has a checkpoint's variables and no computation, to measure the way into the file alone."""

from collections.abc import Mapping as Named
from typing import Any

import numpy as np

from converter import Mapping, Pair, Row, kinds

Shapes = Named[str, tuple[int, ...]]


def _modules(shapes: Shapes) -> dict[str, dict[str, tuple[int, ...]]]:
    """Module path -> its tensors."""
    modules: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        path, _, leaf = name.rpartition(".")
        modules.setdefault(path, {})[leaf] = shape
    return modules


def _kind(path: str, leaves: dict[str, tuple[int, ...]]) -> kinds.Kind | None:
    """A module with a weight is of a kind; other tensors are parameters of their own."""
    weight = leaves.get("weight")
    if weight is None or set(leaves) - {"weight", "bias"}:
        return None
    if len(weight) == 4:
        return kinds.CONV_TRANSPOSE_2D if path.startswith("mask_decoder.output_upscaling") else kinds.CONV_2D
    if len(weight) == 2:
        return kinds.DENSE if "bias" in leaves else kinds.TOKENS
    return kinds.LAYER_NORM


def _rows(shapes: Shapes) -> Mapping:
    rows = []
    for path, leaves in _modules(shapes).items():
        kind = _kind(path, leaves)
        flat = path.replace(".", "_")
        if kind is None:
            rows += [Row(f"{path}.{leaf}", kinds.PARAMETER, f"{flat}_{leaf}") for leaf in leaves]
        else:
            rows.append(Row(path, kind, flat))
    return Mapping(rows)


def _build(shapes: Shapes) -> Any:
    import keras

    class Bag(keras.layers.Layer):
        """Holds the variables of one module."""

    def variable(layer: Any, name: str, shape: tuple[int, ...]) -> None:
        setattr(layer, name, layer.add_weight(name=name, shape=shape, initializer="zeros"))

    model = keras.Model(name="stand_in")
    for path, leaves in _modules(shapes).items():
        kind, flat = _kind(path, leaves), path.replace(".", "_")
        if kind is None:
            for leaf, shape in leaves.items():
                variable(model, f"{flat}_{leaf}", shape)
            continue
        bag = Bag()
        setattr(model, flat, bag)
        for leaf in kind.leaves:
            if leaf.torch in leaves:
                [(name, layout)] = leaf.variables
                shape = layout.to_keras(
                    np.broadcast_to(np.float32(0), leaves[leaf.torch]), _like(layout, leaves[leaf.torch])
                )
                variable(bag, name, shape.shape)
        bag.built = True
    model.built = True
    return model


def _like(layout: kinds.Layout, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The Keras shape of a torch shape, for patterns that only permute."""
    if "..." in layout.pattern:
        return shape
    torch_axes, keras_axes = (side.split() for side in layout.sides)
    return tuple(shape[torch_axes.index(axis)] for axis in keras_axes)


def stand_in(shapes: Shapes) -> Pair:
    """The pair for tensors of these names and shapes; its torch side is never built."""
    return Pair(
        name="stand_in",
        mapping=lambda config: _rows(shapes),
        probes=lambda config, rng: [],
        build_tf=lambda: _build(shapes),
    )
