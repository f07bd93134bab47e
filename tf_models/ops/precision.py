"""In which precision the ops compute, and how a product or a quotient keeps its own rounding.

Where a value is then truncated or compared with a border, its last bit decides, and optimizers change last bits.
"""

import tensorflow as tf

_HALVES = (tf.float16, tf.bfloat16)


def opmath(dtype: tf.DType) -> tf.DType:
    """The dtype to compute in: float32 for the half types, else the dtype itself."""
    return tf.float32 if dtype in _HALVES else dtype


def rounded(product: tf.Tensor) -> tf.Tensor:
    """The product, rounded before anything is added to it.

    XLA would contract a * b + c into one operation with one rounding. A minimum which changes no finite number keeps
    the two apart.
    """
    return tf.minimum(product, product.dtype.max)


def quotient(value: tf.Tensor, divisor: tf.Tensor | float) -> tf.Tensor:
    """value / divisor, rounded once, for a positive divisor.

    Grappler and XLA would multiply by the reciprocal of a constant, with two roundings. A maximum which changes no
    positive number makes the divisor depend on the value.
    """
    return value / tf.maximum(tf.cast(divisor, value.dtype), -tf.abs(value))
