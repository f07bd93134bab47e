"""What makes a right Keras model wrong: each function returns a change to make on the built model, or is one.

A change gives one layer another method, on a class of its own, or another attribute; nothing else is touched. Keras is
imported when a change is made, because torch must be imported before it.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

Change = Callable[[Any], None]


def _ops() -> Any:
    from keras import ops

    return ops


def at(model: Any, path: str | None) -> Any:
    """The layer at a path, or the model."""
    from converter.planning.variables import layer_at

    found = model if path is None else layer_at(model, path)
    if found is None:
        raise ValueError(f"the model has no layer {path}")
    return found


def become(layer: Any, **methods: Any) -> None:
    """The layer with other methods. `self.as_it_was` is the class as it was."""
    right = type(layer)
    layer.__class__ = type(right.__name__, (right,), {**methods, "as_it_was": right})


def method(path: str | None, name: str, function: Callable[..., Any]) -> Change:
    """The layer's method is another one."""
    return lambda model: become(at(model, path), **{name: function})


def attribute_at(path: str, name: str, value: Any) -> Change:
    """The layer's attribute has another value."""

    def change(model: Any) -> None:
        layer = at(model, path)
        if not hasattr(layer, name):
            raise ValueError(f"{path} has no {name}")
        setattr(layer, name, value)

    return change


# --- functions --------------------------------------------------------------------------------------------------------


def tanh_gelu(x: Any) -> Any:
    return _ops().gelu(x, approximate=True)


def erf_gelu(x: Any) -> Any:
    return _ops().gelu(x, approximate=False)


def relu(x: Any) -> Any:
    return _ops().relu(x)


def hard_swish(x: Any) -> Any:
    return _ops().hard_silu(x)


def swish(x: Any) -> Any:
    return _ops().silu(x)


def leaky(x: Any, slope: float) -> Any:
    return _ops().leaky_relu(x, slope)


def hard_sigmoid(x: Any) -> Any:
    """Keras's of old: a slope of 0.2."""
    return _ops().clip(0.2 * x + 0.5, 0.0, 1.0)


def chain(layers: Any, x: Any) -> Any:
    for layer in layers:
        x = layer(x)
    return x


# --- layers that are wrong --------------------------------------------------------------------------------------------


def layer_computes(path: str, function: Callable[[Any], Any]) -> Change:
    """The layer computes something else of its input."""
    return method(path, "call", lambda self, x: function(x))


def rounded(dtype: str) -> Callable[[Any], Any]:
    """Values as the narrower type has them."""

    def narrowed(values: Any) -> Any:
        return _ops().cast(_ops().cast(values, dtype), values.dtype)

    return narrowed


def first_inputs_exchanged(kernel: Any) -> Any:
    """A kernel whose first two input channels changed places."""
    order = [1, 0, *range(2, kernel.shape[-2])]
    return _ops().take(kernel, order, axis=-2)


def kernel_at(path: str, function: Callable[[Any], Any]) -> Change:
    """The layer computes with another kernel than its variable holds."""

    def change(model: Any) -> None:
        layer = at(model, path)
        if hasattr(layer, "convolution_op"):

            def convolution_op(self: Any, inputs: Any, kernel: Any) -> Any:
                return self.as_it_was.convolution_op(self, inputs, function(_ops().convert_to_tensor(kernel)))

            become(layer, convolution_op=convolution_op)
        elif hasattr(layer, "_whole"):  # a transposed convolution
            become(layer, _whole=lambda self, inputs, kernel: self.as_it_was._whole(self, inputs, function(kernel)))
        else:

            def call(self: Any, inputs: Any) -> Any:
                return _ops().matmul(inputs, function(_ops().convert_to_tensor(self.kernel))) + self.bias

            become(layer, call=call)

    return change


def table_at(path: str, function: Callable[[Any], Any]) -> Change:
    """An embedding whose table is another."""

    def call(self: Any, ids: Any) -> Any:
        return _ops().take(function(_ops().convert_to_tensor(self.embeddings)), ids, axis=0)

    return method(path, "call", call)


def interleaved(groups: int) -> Callable[[Any], Any]:
    """The channels with the groups as the fast axis."""

    def order(x: Any) -> Any:
        channels = x.shape[-1]
        return _ops().take(x, np.arange(channels).reshape(groups, -1).T.reshape(-1), axis=-1)

    return order


def input_at(path: str, function: Callable[[Any], Any]) -> Change:
    """The layer takes its input otherwise."""
    return method(path, "call", lambda self, x: self.as_it_was.call(self, function(x)))


def output_at(path: str, function: Callable[[Any], Any]) -> Change:
    """The layer gives its output otherwise."""
    return method(path, "call", lambda self, x: function(self.as_it_was.call(self, x)))


def training_at(path: str) -> Change:
    """The layer behaves as in training."""

    def call(self: Any, x: Any, training: Any = None, **more: Any) -> Any:
        return self.as_it_was.call(self, x, training=True, **more)

    return method(path, "call", call)


def dense_without_bias(path: str) -> Change:
    return method(path, "call", lambda self, x: _ops().matmul(x, self.kernel))


def bias_twice(path: str) -> Change:
    return method(path, "call", lambda self, x: self.as_it_was.call(self, x) + self.bias)


def uneven(path: str, padding: int) -> Change:
    """Zeros as Keras's "same" pads an even image at stride 2: one less at the beginning."""

    def call(self: Any, x: Any) -> Any:
        x = _ops().pad(x, [(0, 0), (padding - 1, padding + 1), (padding - 1, padding + 1), (0, 0)])
        zeros, self.zeros = self.zeros, (0, 0)
        try:
            return self.as_it_was.call(self, x)
        finally:
            self.zeros = zeros

    return method(path, "call", call)


def undilated(path: str) -> Change:
    """The convolution's taps lie side by side, and its padding fits that."""

    def change(model: Any) -> None:
        layer = at(model, path)
        layer.dilation_rate = (1, 1)
        layer.zeros = (1, 1)

    return change


def stride_moved(path: str) -> Change:
    """keras.applications' ResNet50 has the stride on the first 1x1 convolution, torch on the 3x3."""

    def change(model: Any) -> None:
        block = at(model, path)
        block.conv1.strides, block.conv2.strides = (2, 2), (1, 1)

    return change


def output_padded_with_zeros(path: str) -> Change:
    """The row and column that output padding adds are left empty."""

    def call(self: Any, x: Any) -> Any:
        self.output_padding = (0, 0)
        try:
            y = self.as_it_was.call(self, x)
        finally:
            self.output_padding = (1, 1)
        return _ops().pad(y, [(0, 0), (0, 1), (0, 1), (0, 0)])

    return method(path, "call", call)


def output_padded_before(path: str) -> Change:
    """The row and column that output padding adds are at the beginning."""

    def call(self: Any, x: Any) -> Any:
        padding, more = self.padding, self.output_padding
        self.padding, self.output_padding = (0, 0), (0, 0)
        try:
            y = self.as_it_was.call(self, x)
        finally:
            self.padding, self.output_padding = padding, more
        return y[:, padding[0] - more[0] : y.shape[1] - padding[0], padding[1] - more[1] : y.shape[2] - padding[1]]

    return method(path, "call", call)


# --- attention --------------------------------------------------------------------------------------------------------


def attention_at(path: str, function: Callable[..., tuple]) -> Change:
    """What becomes of queries, keys and values (N, h, L, d) before they are weighed."""
    return method(path, "weigh", lambda self, q, k, v: self.as_it_was.weigh(self, *function(q, k, v)))


def heads_exchanged(x: Any) -> Any:
    return _ops().take(x, [1, 0, *range(2, x.shape[1])], axis=1)


def packed_by_head(path: str) -> Change:
    """Queries, keys and values lie together for each head, in place of the heads for each of the three."""

    def three(self: Any, x: Any) -> list:
        ops = _ops()
        n, length, _ = x.shape
        packed = ops.reshape(self.qkv(x), (n, length, self.heads, 3, -1))
        return [ops.transpose(packed[:, :, :, i], (0, 2, 1, 3)) for i in range(3)]

    return method(path, "three", three)


def softmax_over_queries(path: str) -> Change:
    def weigh(self: Any, q: Any, k: Any, v: Any) -> Any:
        ops = _ops()
        scores = ops.matmul(q / q.shape[-1] ** 0.5, ops.transpose(k, (0, 1, 3, 2)))
        return ops.matmul(ops.softmax(scores, -2), v)

    return method(path, "weigh", weigh)


def scaled_mha(path: str, factor: float) -> Change:
    """keras.layers.MultiHeadAttention with scores `factor` times as large."""

    def change(model: Any) -> None:
        layer = at(model, path)
        layer._inverse_sqrt_key_dim = layer._inverse_sqrt_key_dim * factor

    return change


def with_attend(path: str, function: Callable[..., tuple]) -> Change:
    """The layer weighs (q, k, v, bias) after `function` changed them."""

    def change(model: Any) -> None:
        from benchmarks.soundness.tf_networks import sequences

        right = sequences.attend

        def call(self: Any, x: Any) -> Any:
            # The function is looked up in its module when the layer is called.
            sequences.attend = lambda q, k, v, bias=None: right(*function(q, k, v, bias))
            try:
                return self.as_it_was.call(self, x)
            finally:
                sequences.attend = right

        become(at(model, path), call=call)

    return change


def causal_by_one(path: str) -> Change:
    def causal(self: Any, length: int, dtype: Any) -> Any:
        return _ops().cast(np.triu(np.full((length, length), np.finfo(np.float32).min), 2), dtype)

    return method(path, "causal", causal)


def unmasked(path: str) -> Change:
    return method(path, "attended", lambda self, x, padding: self.self_attn(x, x, x))


def bert_mask(value: float | None) -> Change:
    """The mask is `value` everywhere, or (None) looks at padding alone."""

    def mask(self: Any, attention_mask: Any) -> Any:
        if value is None:
            return self.as_it_was.mask(self, 1 - attention_mask)
        return self.as_it_was.mask(self, attention_mask) * value

    return method(None, "mask", mask)


def no_window_mask(path: str) -> Change:
    return method(path, "mask", lambda self, *size: 0 * self.as_it_was.mask(self, *size))


def index_transposed(path: str) -> Change:
    return method(path, "index", lambda self: self.as_it_was.index(self).T)


# --- tokens -----------------------------------------------------------------------------------------------------------


def one_position_off(model: Any) -> None:
    """Row 3 of the table is row 4."""

    def positions(self: Any) -> Any:
        table = self.as_it_was.positions(self)
        return _ops().take(table, [0, 1, 2, 4, *range(4, table.shape[1])], axis=1)

    become(model.encoder, positions=positions)


def positions_rolled(model: Any) -> None:
    def call(self: Any, x: Any) -> Any:
        x = self.with_class(self.patch_embed(x)) + _ops().roll(_ops().convert_to_tensor(self.pos_embed), 1, 1)
        return self.head(self.norm(chain(self.blocks, x))[:, 0])

    become(model, call=call)


def bert_positions(first: int) -> Change:
    return method("embeddings", "positions", lambda self, length: _ops().arange(first, first + length)[None])


def one_token_type(model: Any) -> None:
    become(
        model.embeddings,
        call=lambda self, input_ids, token_type_ids: self.as_it_was.call(self, input_ids, 0 * token_type_ids),
    )


def class_token_last(model: Any) -> None:
    def with_class(self: Any, x: Any) -> Any:
        return _ops().roll(self.as_it_was.with_class(self, x), -1, 1)

    def call(self: Any, x: Any) -> Any:
        return self.heads["head"](self.encoder(self.with_class(self.tokens(x)))[:, -1])

    become(model, with_class=with_class, call=call)


def last_token_read(model: Any) -> None:
    become(model, call=lambda self, x: self.heads["head"](self.encoder(self.with_class(self.tokens(x)))[:, -1]))


def tokens_by_column(path: str | None = None) -> Change:
    """An image becomes tokens column by column."""

    def turned(x: Any) -> Any:
        ops = _ops()
        n, height, width, channels = x.shape
        return ops.reshape(ops.transpose(x, (0, 2, 1, 3)), (n, height * width, channels))

    if path is None:
        return method(None, "tokens", lambda self, x: turned(self.conv_proj(x)))
    return method(path, "call", lambda self, x: turned(self.proj(x)))


def neighbours_by_row(model: Any) -> None:
    def neighbours(self: Any, x: Any) -> list:
        first, second, third, fourth = self.as_it_was.neighbours(self, x)
        return [first, third, second, fourth]

    become(at(model, "features.2"), neighbours=neighbours)


# --- between layers ---------------------------------------------------------------------------------------------------


def after_dense(path: str, function: Callable[[Any], Any]) -> Change:
    return method(path, "between", lambda self, x: function(self.intermediate["dense"](x)))


def encoder_gelu(path: str) -> Change:
    return method(path, "mixed", lambda self, x: self.linear2(self.dropout(tanh_gelu(self.linear1(x)))))


def relu_missing(path: str) -> Change:
    return method(path, "call", lambda self, x: relu(self.bn2(self.conv2(self.bn1(self.conv1(x))))))


def old_hard_sigmoid(path: str) -> Change:
    return attribute_at(path, "outer", hard_sigmoid)


def pooler_without_tanh(model: Any) -> None:
    def call(self: Any, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
        x = self.embeddings(input_ids, token_type_ids)
        for layer in self.encoder["layer"]:
            x = layer(x, self.mask(attention_mask))
        return x, self.pooler["dense"](x[:, 0])

    become(model, call=call)


def pool_uneven(model: Any) -> None:
    """Max pooling as Keras's "same": all its padding at the end."""

    def pool(self: Any, x: Any) -> Any:
        ops = _ops()
        return ops.max_pool(ops.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)]), 3, 2)

    become(model, pool=pool)


def ceil_ignored(path: str) -> Change:
    """What reaches beyond is left out, and the last row and column stand twice, so that the shape is right."""

    def call(self: Any, x: Any) -> Any:
        ops = _ops()
        right = self.as_it_was.call(self, x)
        y = ops.max_pool(x, 3, 2)
        missing = [(0, n - m) for n, m in zip(right.shape[1:3], y.shape[1:3], strict=True)]
        return ops.pad(y, [(0, 0), *missing, (0, 0)])

    return method(path, "call", call)


def padded_otherwise(amount: int, mode: str) -> Change:
    """Where `amount` pixels are reflected, they are made otherwise."""

    def reflected(self: Any, x: Any, pixels: int) -> Any:
        if pixels != amount:
            return self.as_it_was.reflected(self, x, pixels)
        return _ops().pad(x, [(0, 0), (pixels, pixels), (pixels, pixels), (0, 0)], mode=mode)

    return method(None, "reflected", reflected)


def padding_not_counted(model: Any) -> None:
    become(model.mixed, pooled=lambda self, x: _ops().average_pool(x, 3, 1, padding="same"))


def branches_reversed(model: Any) -> None:
    def call(self: Any, x: Any) -> Any:
        parts = [
            self.branch1x1(x),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            self.branch5x5_2(self.branch5x5_1(x)),
            self.branch_pool(self.pooled(x)),
        ]
        return _ops().concatenate(parts, -1)

    become(model.mixed, call=call)


def mean_of_squares(model: Any) -> None:
    def call(self: Any, x: Any) -> Any:
        x = self.pool(relu(self.bn1(self.conv1(x))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = chain(stage, x)
        return self.fc(_ops().sum(x, (1, 2)) / x.shape[1] ** 2)

    become(model, call=call)


def maximum_for_mean(model: Any) -> None:
    become(model.layers[5], call=lambda self, x: _ops().max(x, (1, 2)))


def squeezed_by_height(path: str) -> Change:
    return method(path, "squeeze", lambda self, x: _ops().mean(x, 1, keepdims=True))


def resized_otherwise(options: dict[str, Any]) -> Change:
    def resized(self: Any, x: Any) -> Any:
        from tf_models.ops import interpolate

        return interpolate(x, scale_factor=2, **options)

    return method(None, "resized", resized)


def resized_without_half_pixels(model: Any) -> None:
    """Every second pixel is an old one, the others lie half way to the next; the last stands twice."""

    def along(x: Any, axis: int) -> Any:
        ops = _ops()
        size = x.shape[axis]
        shifted = ops.take(x, [*range(1, size), size - 1], axis=axis)
        both = ops.stack([x, (x + shifted) / 2], axis=axis + 1)
        shape = list(x.shape)
        shape[axis] *= 2
        return ops.reshape(both, shape)

    become(model, resized=lambda self, x: along(along(x, 1), 2))


def grown_otherwise(path: str | None, mode: str, **options: Any) -> Change:
    def grown(self: Any, x: Any, size: Any) -> Any:
        from tf_models.ops import interpolate

        return interpolate(x, size, mode=mode, **options)

    return method(path, "grown", grown)


def image_channels_last(model: Any) -> None:
    become(model, image=lambda self, x: _ops().reshape(x, (-1, 2, 3, 8)))


def depth_to_space(model: Any) -> None:
    def call(self: Any, x: Any) -> Any:
        import tensorflow as tf

        return tf.nn.depth_to_space(x, 2)

    become(model.shuffle, call=call)


def skip_second(model: Any) -> None:
    become(
        model,
        joined=lambda self, skip, x: (
            _ops().concatenate([x, skip], -1) if x.shape[-1] == 12 else self.as_it_was.joined(self, skip, x)
        ),
    )


# --- wiring -----------------------------------------------------------------------------------------------------------


def plus_mlp(block: Any, x: Any) -> Any:
    return x + block.ls2(block.mlp(block.norm2(x)))


def residual_after_norm(path: str) -> Change:
    def call(self: Any, x: Any) -> Any:
        x = self.norm1(x)
        return plus_mlp(self, x + self.ls1(self.attn(x)))

    return method(path, "call", call)


def mixed_without_residual(block: Any, x: Any) -> Any:
    x = block.across(x)
    return x + block.mlp_channels(block.norm2(x))


def shortcut_of_half(model: Any) -> None:
    """The shortcut of a bottleneck sees its input after the image's columns changed places."""
    become(at(model, "layer3.0"), shortcut=lambda self, x: self.as_it_was.shortcut(self, _ops().flip(x, 2)))


def fpn_returns(function: Callable[[dict[str, Any]], Any]) -> Change:
    """The stage alone returns something else; the model goes round it."""

    def change(model: Any) -> None:
        right = type(model.fpn).call
        become(model.fpn, call=lambda self, x: function(right(self, x)))
        become(model, call=lambda self, x: tuple(right(self.fpn, self.maps(x)).values()))

    return change


def outputs_changed(function: Callable[[tuple], tuple]) -> Change:
    return method(None, "call", lambda self, x: function(self.as_it_was.call(self, x)))


def padding_averaged(model: Any) -> None:
    def call(self: Any, ids: Any, padding: Any) -> Any:
        x = self.encoder(self.embed(ids) + self.positions[:, : ids.shape[1]], padding)
        return self.head(_ops().mean(x, 1)), x

    become(model, call=call)


def table_turned(model: Any) -> None:
    """The table's channels run backwards."""

    def logits(self: Any, x: Any) -> Any:
        return _ops().matmul(_ops().flip(x, -1), _ops().transpose(self.transformer.wte.embeddings))

    become(model, logits=logits)


def without_row(path: str, then: Callable[[tuple], tuple]) -> Callable[[tuple], tuple]:
    """The table without the row of `path`, and then changed."""
    return lambda rows: then(tuple(row for row in rows if row.path != path))


# --- recurrence -------------------------------------------------------------------------------------------------------


def gates_exchanged(path: str) -> Change:
    """The cell takes the gates as i, f, o, g, and not as i, f, g, o."""

    def change(model: Any) -> None:
        ops = _ops()

        def call(self: Any, inputs: Any, states: Any, training: bool = False) -> Any:
            hidden, carry = states
            gates = ops.matmul(inputs, self.kernel) + ops.matmul(hidden, self.recurrent_kernel)
            i, f, o, g = ops.split(gates, 4, -1)
            carry = ops.sigmoid(f) * carry + ops.sigmoid(i) * ops.tanh(g)
            hidden = ops.sigmoid(o) * ops.tanh(carry)
            return hidden, [hidden, carry]

        become(at(model, path).cell, call=call)
        # TensorFlow's fused kernel would go round the cell.
        at(model, path).use_cudnn = False

    return change


def not_turned(path: str) -> Change:
    """The states of the backward half stay in the order in which they were made."""

    def call(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        ops = _ops()
        y = self.as_it_was.call(self, x, *args, **kwargs)
        half = y.shape[-1] // 2
        return ops.concatenate([y[..., :half], ops.flip(y[..., half:], 1)], -1)

    return method(path, "call", call)
