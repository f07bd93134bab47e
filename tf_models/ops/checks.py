"""Argument checks of the ops: each raises a ValueError that names the argument, what was expected and what came."""

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

MOST = 2**31 - 1  # along an axis: TensorFlow's int32
FLOATS = (tf.float32, tf.float64, tf.float16, tf.bfloat16)


def tensor(
    name: str,
    value: Any,
    *,
    rank: int | tuple[int, ...] | None = None,
    dtype: tf.DType | tuple[tf.DType, ...] = FLOATS,
) -> tf.Tensor:
    """`value` as a tensor of one of the dtypes and ranks; Python numbers take the first dtype."""
    dtypes = dtype if isinstance(dtype, tuple) else (dtype,)
    try:
        # A hint would convert an array, too.
        result = tf.convert_to_tensor(value, dtype_hint=None if hasattr(value, "dtype") else dtypes[0])
    except (TypeError, ValueError) as error:
        symbolic = "; call the op inside of a Keras layer" if type(value).__name__ == "KerasTensor" else ""
        raise ValueError(f"{name}: expected a tensor, got {type(value).__name__}{symbolic}") from error
    if result.dtype not in dtypes:
        raise ValueError(f"{name}: expected dtype {_either(d.name for d in dtypes)}, got {result.dtype.name}")
    ranks = (rank,) if isinstance(rank, int) else rank
    if ranks is not None and result.shape.rank not in ranks:
        got = "an unknown rank" if result.shape.rank is None else f"rank {result.shape.rank}, shape {result.shape}"
        raise ValueError(f"{name}: expected rank {_either(ranks)}, got {got}")
    return result


def shape(name: str, value: tf.Tensor, axes: str, sizes: Sequence[int | None]) -> None:
    """Compare the static shape with `sizes`, None on either side matching anything; `axes` spells them: "N Ho Wo 2"."""
    got = value.shape
    if len(got) != len(sizes) or any(None not in pair and pair[0] != pair[1] for pair in zip(got, sizes, strict=True)):
        expected = ", ".join(axes.split())
        known = ", ".join("?" if size is None else str(size) for size in sizes)
        raise ValueError(f"{name}: expected shape ({expected}) = ({known}), got {got}")


def agree(name: str, value: tf.Tensor, axes: str, sizes: Sequence[int | tf.Tensor | None]) -> tf.Tensor:
    """`value`, whose shape is compared with `sizes` where only the running graph knows it; None matches anything.

    What differs there is an InvalidArgumentError; XLA leaves such checks out.
    """
    which = [
        axis
        for axis, size in enumerate(sizes)
        if tf.is_tensor(size) or (size is not None and value.shape[axis] is None)
    ]
    if not which:
        return value
    got, expected = tf.gather(tf.shape(value), which), tf.stack([tf.cast(sizes[axis], tf.int32) for axis in which])
    named = ", ".join(axes.split()[axis] for axis in which)
    said = f"{name}: expected ({named}), then got:"
    check = tf.raw_ops.Assert(condition=tf.reduce_all(got == expected), data=[said, expected, got])
    with tf.control_dependencies([check]):
        return tf.identity(value)


def known(name: str, value: tf.Tensor, axes: str, which: Iterable[int]) -> None:
    """The sizes of these axes are static."""
    if any(value.shape[axis] is None for axis in which):
        expected = ", ".join(axes.split())
        raise ValueError(
            f"{name}: expected known sizes of ({', '.join(axes.split()[i] for i in which)}) in ({expected}), "
            f"got {value.shape}"
        )


def non_empty(name: str, value: tf.Tensor, axes: Iterable[int]) -> None:
    """None of the axes is known to have size 0."""
    if any(value.shape[axis] == 0 for axis in axes):
        raise ValueError(f"{name}: expected non-empty spatial dimensions, got shape {value.shape}")


def choice(name: str, value: Any, options: Sequence[str]) -> None:
    """`value` is one of the strings."""
    if not isinstance(value, str) or value not in options:
        raise ValueError(f"{name}: expected {_either(repr(o) for o in options)}, got {value!r}")


def integers(name: str, value: Any, count: int, minimum: int) -> tuple[int, ...]:
    """An int, or `count` of them, each at least `minimum`, as a tuple of `count`; no bool is one."""
    result = sizes(name, value, count, minimum)
    if any(map(tf.is_tensor, result)):
        raise ValueError(f"{name}: expected ints known when the graph is built, got {value!r}")
    return result


def sizes(name: str, value: Any, count: int, minimum: int) -> tuple[int | tf.Tensor, ...]:
    """An integer, or `count` of them, as a tuple of `count`: ints, at least `minimum`, and int32 scalars where unknown.

    Each an int or an int32/int64 scalar tensor; all together also an array, a vector tensor or a `tf.TensorShape`.
    """
    items: Any = value
    if tf.is_tensor(value):
        vector = value.shape.rank == 1 and value.shape[0] in (None, count)
        items = tf.unstack(value, num=count) if vector else [value] * count
    elif isinstance(value, np.ndarray):
        items = list(value) if value.ndim == 1 else [value[()]] * count
    elif not isinstance(value, (list, tuple, tf.TensorShape)):
        items = [value] * count
    result = tuple(map(_size, items))
    if len(result) != count or any(n is None or (isinstance(n, int) and n < minimum) for n in result):
        raise ValueError(f"{name}: expected an int or {count} ints, at least {minimum}, got {value!r}")
    if any(isinstance(n, int) and n > MOST for n in result):
        raise ValueError(f"{name}: expected at most {MOST}, got {value!r}")
    return result


def _size(value: Any) -> int | tf.Tensor | None:
    """None for what is no size."""
    if tf.is_tensor(value):
        if value.shape.rank != 0 or value.dtype not in (tf.int32, tf.int64):
            return None
        known = tf.get_static_value(value)
        return tf.cast(value, tf.int32) if known is None else int(known)
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def flag(name: str, value: Any) -> bool:
    """True or False; None, torch's default for some, is False."""
    if value is not None and not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name}: expected True or False, got {value!r}")
    return bool(value)


def _either(options: Any) -> str:
    return " or ".join(str(option) for option in options)
