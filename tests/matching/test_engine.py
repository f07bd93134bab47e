"""Two networks are matched by what they compute: every row that is proven is right, and what cannot be told is not."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import torch
from torch import nn

import converter
from converter.errors import ConversionError
from converter.kinds.axes import pattern
from converter.matching.match import Match

RNG = np.random.default_rng(5)


def image(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def matched(build_torch: Callable[[], Any], build_keras: Callable[[], Any], *inputs: np.ndarray) -> Match:
    return converter.match(build_torch, build_keras, lambda: inputs)


def proven(match: Match) -> dict[str, tuple[tuple[str, ...], str]]:
    """Variable -> tensors and axes, of what is proven."""
    return {row.variable: (row.tensors, row.axes) for row in match.rows if row.status == "proven"}


def statuses(match: Match) -> dict[str, str]:
    return {row.variable: row.status for row in match.rows}


class Residual(nn.Module):
    """Kernels of one size, so that shapes say nothing; a bias that torch leaves out; an image that is flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.a = nn.Conv2d(8, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.wise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(8 * 4 * 5, 7)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.b(torch.relu(self.a(x)))
        return self.head(self.wise(x).flatten(1))


def residual_keras() -> Any:
    given = keras.Input((4, 5, 3))
    x = keras.layers.Conv2D(8, 3, padding="same", name="first")(given)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization(epsilon=1e-5, name="bn")(x))
    y = keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="two")(x)
    x = keras.layers.Add()([x, keras.layers.Conv2D(8, 3, padding="same", name="one")(y)])
    x = keras.layers.DepthwiseConv2D(3, padding="same", name="depth")(x)
    return keras.Model(given, keras.layers.Dense(7, name="end")(keras.layers.Flatten()(x)))


def test_kernels_of_one_size_are_told_by_what_they_compute():
    match = matched(Residual, residual_keras, image(2, 3, 4, 5))
    found = proven(match)
    assert len(found) == len(match.rows) == 14
    assert found["two.kernel"] == (("a.weight",), "o i kh kw -> kh kw i o")
    assert found["one.kernel"] == (("b.weight",), "o i kh kw -> kh kw i o")
    assert found["first.bias"] == ((), "= 0")
    assert found["depth.kernel"][1] == "(c m) 1 kh kw -> kh kw c m"
    assert match.left == {"norm.num_batches_tracked": "Keras keeps no count of batches"}
    assert [one[:2] for one in match.outputs] == [("", "")]


def test_an_image_that_is_flattened_reorders_the_kernel():
    match = matched(Residual, residual_keras, image(2, 3, 4, 5))
    [fill] = [
        fill for link in match.links if link.keras == "end" for fill in link.fills if fill.variables == ("kernel",)
    ]
    kernel = np.arange(7 * 160.0).reshape(7, 160)
    [laid] = pattern(fill.axes).apply([kernel], [(160, 7)], dict(fill.sizes))
    np.testing.assert_array_equal(laid, kernel.reshape(7, 8, 4, 5).transpose(2, 3, 1, 0).reshape(160, 7))


class Attending(nn.Module):
    """Attention with the three kernels apart."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Any) -> Any:
        q, k, v = (one(x).unflatten(-1, (2, 4)).transpose(1, 2) for one in (self.q, self.k, self.v))
        y = torch.softmax(q @ k.transpose(-1, -2) / 2, -1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


class Packed(nn.Module):
    """The same with one kernel for all three."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Any) -> Any:
        q, k, v = (one.unflatten(-1, (2, 4)).transpose(1, 2) for one in self.qkv(x).chunk(3, -1))
        y = torch.softmax(q @ k.transpose(-1, -2) / 2, -1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


def heads_keras() -> Any:
    given = keras.Input((6, 8))
    return keras.Model(given, keras.layers.MultiHeadAttention(2, 4, name="mha")(given, given))


class PackedKeras(keras.Model):
    """One kernel for all three."""

    def __init__(self) -> None:
        super().__init__()
        self.all_three, self.end = keras.layers.Dense(24), keras.layers.Dense(8)

    def call(self, x: Any) -> Any:
        q, k, v = (
            keras.ops.transpose(keras.ops.reshape(one, (-1, 6, 2, 4)), (0, 2, 1, 3))
            for one in keras.ops.split(self.all_three(x), 3, -1)
        )
        y = keras.ops.matmul(keras.ops.softmax(keras.ops.matmul(q, keras.ops.transpose(k, (0, 1, 3, 2))) / 2), v)
        return self.end(keras.ops.reshape(keras.ops.transpose(y, (0, 2, 1, 3)), (-1, 6, 8)))


def test_heads_are_told_from_what_is_in_them():
    found = proven(matched(Attending, heads_keras, image(2, 6, 8)))
    assert found["mha.query_dense.kernel"] == (("q.weight",), "(b c) a -> a b c")
    assert found["mha.output_dense.kernel"] == (("out.weight",), "c (a b) -> a b c")
    assert len(found) == 8


@pytest.mark.parametrize(
    ("torch_side", "keras_side", "tensors", "variables"),
    [(Packed, heads_keras, 4, 8), (Attending, PackedKeras, 8, 4), (Packed, PackedKeras, 4, 4)],
)
def test_what_is_packed_on_one_side_is_matched_in_parts(torch_side, keras_side, tensors, variables):
    match = matched(torch_side, keras_side, image(2, 6, 8))
    found = proven(match)
    assert len(found) == len(match.rows) == variables
    assert len({name for names, _ in found.values() for name in names}) == tensors


def test_parts_go_to_their_places():
    match = matched(Packed, heads_keras, image(2, 6, 8))
    [link] = [link for link in match.links if link.torch == "qkv"]
    fill = next(fill for fill in link.fills if fill.tensors == ("weight",))
    kernel = RNG.normal(size=(24, 8))
    laid = pattern(fill.axes).apply([kernel], [(8, 2, 4)] * 3, dict(fill.sizes))
    for name, value in zip(fill.variables, laid, strict=True):
        at = ["query", "key", "value"].index(name.split("_")[0])
        np.testing.assert_array_equal(value, kernel[8 * at : 8 * at + 8].reshape(2, 4, 8).transpose(2, 0, 1))


class Misnamed(keras.Model):
    """Its layers of queries and keys have each other's names."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.query, self.value, self.out = (keras.layers.Dense(8) for _ in range(4))

    def call(self, x: Any) -> Any:
        q, k, v = (
            keras.ops.transpose(keras.ops.reshape(one(x), (-1, 6, 2, 4)), (0, 2, 1, 3))
            for one in (self.key, self.query, self.value)
        )
        y = keras.ops.matmul(keras.ops.softmax(keras.ops.matmul(q, keras.ops.transpose(k, (0, 1, 3, 2))) / 2), v)
        return self.out(keras.ops.reshape(keras.ops.transpose(y, (0, 2, 1, 3)), (-1, 6, 8)))


def test_names_that_lie_are_not_believed():
    found = proven(matched(Attending, Misnamed, image(2, 6, 8)))
    assert found["key.kernel"][0] == ("q.weight",)
    assert found["query.kernel"][0] == ("k.weight",)
    assert len(found) == 8


class Untransposed(keras.layers.Layer):
    """A kernel that is used as torch uses it."""

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(shape=(8, shape[-1]), name="kernel")

    def call(self, x: Any) -> Any:
        return keras.ops.matmul(x, keras.ops.transpose(self.kernel))


def test_the_axes_of_a_square_kernel_are_tried():
    def keras_side() -> Any:
        given = keras.Input((8,))
        return keras.Model(given, keras.layers.Dense(3)(keras.layers.ReLU()(Untransposed(name="mine")(given))))

    match = matched(
        lambda: nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 3)), keras_side, image(4, 8)
    )
    assert proven(match)["mine.kernel"] == (("0.weight",), "o i -> o i")
    assert set(statuses(match).values()) == {"proven"}


class Zeros(nn.Module):
    """Attention over nothing: its queries and keys are multiplied, and no weight depends on them."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = Attending(), nn.Linear(8, 8)

    def forward(self, x: Any) -> Any:
        nothing = self.attention(torch.ones_like(x))
        return self.head(x + nothing)


def test_what_nothing_depends_on_is_not_proven():
    def keras_side() -> Any:
        given = keras.Input((6, 8))
        ones = keras.ops.ones_like(given)
        nothing = keras.layers.MultiHeadAttention(2, 4, name="mha")(ones, ones)
        return keras.Model(given, keras.layers.Dense(8, name="head")(keras.layers.Add()([given, nothing])))

    found = statuses(matched(Zeros, keras_side, image(2, 6, 8)))
    assert found["mha.query_dense.kernel"] == found["mha.key_dense.kernel"] == "proposed"
    assert found["head.kernel"] == found["mha.value_dense.kernel"] == "proven"


class Blocks(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(count))
        self.last = nn.Linear(8, 5)

    def forward(self, x: Any) -> Any:
        x = torch.tanh(self.first(x))
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return self.last(x)


def blocks_keras(count: int) -> Any:
    given = keras.Input((6,))
    x = keras.layers.Dense(8, activation="tanh", name="begin")(given)
    for place in range(count):
        x = keras.layers.Add()([x, keras.layers.Dense(8, activation="tanh", name=f"block_{place}")(x)])
    return keras.Model(given, keras.layers.Dense(5, name="end")(x))


@pytest.mark.parametrize(("theirs", "ours"), [(3, 1), (1, 3), (4, 3)])
def test_nothing_is_proven_that_hangs_on_a_block_that_is_missing(theirs, ours):
    match = matched(lambda: Blocks(theirs), lambda: blocks_keras(ours), image(7, 6))
    found = statuses(match)
    assert found["end.kernel"] != "proven"
    wrong = [
        name
        for name, (tensors, _) in proven(match).items()
        if name.startswith("block_") and tensors[0] != f"blocks.{name[6]}.weight" and "kernel" in name
    ]
    assert not wrong
    assert any(("only torch has" if theirs > ours else "only Keras has") in note for note in match.notes)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.other = nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(8, 5)

    def forward(self, x: Any) -> Any:
        x = torch.tanh(self.body(x))
        return self.head(x), self.other(x)


def test_of_two_heads_either_may_be_meant():
    match = matched(TwoHeads, lambda: blocks_keras(0), image(7, 6))
    found = statuses(match)
    assert found["end.kernel"] == found["end.bias"] == "ambiguous"
    assert found["begin.kernel"] == "proposed"


class Positions(nn.Module):
    """Positions that are counted from 2, as BART's are."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions, self.head = nn.Embedding(11, 8), nn.Embedding(9, 8), nn.Linear(8, 3)

    def forward(self, x: Any) -> Any:
        places = torch.arange(x.shape[1]) + 2
        return self.head(torch.tanh(self.words(x) + self.positions(places)))


def test_a_table_of_which_keras_has_fewer_rows():
    class Net(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places = keras.layers.Embedding(11, 8), keras.layers.Embedding(7, 8)
            self.head = keras.layers.Dense(3)

        def call(self, x: Any) -> Any:
            return self.head(keras.ops.tanh(self.words(x) + self.places(keras.ops.arange(6))))

    ids = np.random.default_rng(2).integers(0, 11, (2, 6))
    match = converter.match(Positions, Net, lambda: ((ids,), ids.astype("int32")))
    [fill] = [fill for link in match.links if link.torch == "positions" for fill in link.fills]
    assert dict(fill.sizes) == {"from": 2, "to": 9, "of": 9}
    assert set(statuses(match).values()) == {"proven"}


def test_random_layers_are_refused():
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(6, 5)

        def forward(self, x: Any) -> Any:
            return self.one(x) + torch.rand(5)

    with pytest.raises(ConversionError, match="another result when it is called again"):
        matched(Noisy, lambda: blocks_keras(0), image(7, 6))


def test_inputs_that_a_side_refuses():
    with pytest.raises(ConversionError, match="fails on its inputs: "):
        matched(lambda: Blocks(1), lambda: blocks_keras(1), image(7, 4))


def test_inputs_of_another_batch_are_told():
    with pytest.raises(ConversionError, match="gives torch a batch of 7 and Keras one of 3: both get the same inputs"):
        converter.match(lambda: Blocks(1), lambda: blocks_keras(1), lambda: ((image(7, 6),), image(3, 6)))


# cloudpickle forgets the file of a function since its version 3.1, so that only the function's place is known.
_PLACED = (
    r"RuntimeError: no such size \(in the function at .*test_engine\.py:\d+|test_engine\.py:\d+: RuntimeError: no such"
)


def test_a_builder_that_fails_is_told_with_its_line():
    def broken() -> Any:
        raise RuntimeError("no such size")

    with pytest.raises(ConversionError, match=_PLACED):
        matched(broken, lambda: blocks_keras(1), image(7, 6))
    with pytest.raises(ConversionError, match=r"test_engine\.py:\d+: RuntimeError: no such size"):
        matched(lambda: Blocks(1), broken, image(7, 6))


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    torch.save(Residual().state_dict(), tmp_path / "other.pth")
    with pytest.raises(ConversionError, match="of another network: of the 6 tensors of --torch it holds 0"):
        converter.match(lambda: Blocks(1), lambda: blocks_keras(1), lambda: (image(7, 6),), tmp_path / "other.pth")


def test_a_checkpoint_may_stand_under_a_prefix_and_lack_something(tmp_path):
    state = {f"module.net.{name}": value for name, value in Blocks(1).state_dict().items() if name != "last.bias"}
    torch.save({"state_dict": state}, tmp_path / "net.pth")
    match = converter.match(lambda: Blocks(1), lambda: blocks_keras(1), lambda: (image(7, 6),), tmp_path / "net.pth")
    assert match.notes == ["the checkpoint lacks last.bias"]
    assert match.rows[0].tensors == ("module.net.first.weight",)


def test_a_matched_pair_is_converted_and_proven(tmp_path):
    match = matched(Residual, residual_keras, image(2, 3, 4, 5))
    torch.manual_seed(3)
    torch.save(Residual().state_dict(), tmp_path / "net.pth")
    report = converter.convert(match.pair, tmp_path / "net.pth", tmp_path / "net.weights.h5")
    assert report.numerical.full
    assert len(report.numerical.outputs) == 1


def test_a_layer_with_another_stride_is_named_and_no_row_behind_it_is_proven():
    def theirs() -> Any:
        return nn.Sequential(
            nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 1)
        )

    def ours() -> Any:
        given = keras.Input((8, 8, 3))
        x = keras.layers.Conv2D(4, 1, strides=2, activation="relu", name="a")(given)
        x = keras.layers.Conv2D(4, 3, padding="same", activation="relu", name="b")(x)
        return keras.Model(given, keras.layers.Conv2D(5, 1, name="c")(x))

    match = matched(theirs, ours, image(1, 3, 8, 8))
    assert set(statuses(match).values()) == {"proposed"}
    assert match.notes == ["on agreeing inputs the results differ of 0"]
    evidence = {row.variable: row.evidence for row in match.rows}
    assert evidence["a.kernel"] == "data flow; its result differs in shape, though what it is given agrees"
    assert evidence["b.kernel"].endswith("behind 0")


class Turned(keras.layers.Layer):
    """Its kernel has what is in a head before the heads."""

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(shape=(8, 4, 3), name="kernel")

    def call(self, x: Any) -> Any:
        return keras.ops.reshape(keras.ops.einsum("bi,idh->bhd", x, self.kernel), (-1, 12))


def test_a_kernel_at_the_end_gives_its_values_in_torchs_order():
    def keras_side() -> Any:
        given = keras.Input((8,))
        return keras.Model(given, Turned(name="end")(given))

    match = matched(lambda: nn.Sequential(nn.Linear(8, 12, bias=False)), keras_side, image(2, 8))
    assert proven(match) == {"end.kernel": (("0.weight",), "(c b) a -> a b c")}


class Shuffled(keras.layers.Layer):
    def call(self, x: Any) -> Any:
        _, h, w, c = x.shape
        x = keras.ops.reshape(x, (-1, h, w, 2, 2, c // 4))
        return keras.ops.reshape(keras.ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, 2 * h, 2 * w, c // 4))


def test_an_output_in_another_order_proves_nothing_of_the_last_layer():
    def keras_side() -> Any:
        given = keras.Input((5, 4, 3))
        return keras.Model(given, Shuffled()(keras.layers.Conv2D(12, 3, name="last")(given)))

    match = matched(lambda: nn.Sequential(nn.Conv2d(3, 12, 3), nn.PixelShuffle(2)), keras_side, image(1, 3, 5, 4))
    assert set(statuses(match).values()) == {"ambiguous"}
    assert match.notes == ["an output has torch's values in another order"]


class Biased(nn.Module):
    """Its bias is a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.shift = nn.Linear(8, 5, bias=False), nn.Parameter(torch.zeros(5))

    def forward(self, x: Any) -> Any:
        return self.dense(x) + self.shift


def test_a_bias_is_not_zero_where_torch_adds_something_behind():
    def keras_side() -> Any:
        given = keras.Input((8,))
        return keras.Model(given, keras.layers.Dense(5, name="end")(given))

    match = matched(Biased, keras_side, image(3, 8))
    assert set(statuses(match).values()) == {"ambiguous"}
    assert match.links[0].evidence.endswith("shift may be meant for its constants")
    assert match.left == {"shift": ""}
    assert any(note.startswith("an output differs from torch's") for note in match.notes)


@pytest.mark.parametrize("shape", [(1, 3, 4, 5), (2, 3, 4, 5)])
def test_inputs_that_do_not_vary_prove_no_layout(shape):
    def keras_side() -> Any:
        given = keras.Input((4, 5, 3))
        return keras.Model(given, keras.layers.Dense(7, name="end")(keras.layers.Flatten()(given)))

    def torch_side() -> Any:
        return nn.Sequential(nn.Flatten(), nn.Linear(60, 7))

    match = matched(torch_side, keras_side, np.ones(shape, np.float32))
    assert set(statuses(match).values()) == {"ambiguous"}
    assert match.notes == ["an input is the same all along an axis, and hides much: random numbers show more"]
    assert proven(matched(torch_side, keras_side, image(*shape)))["end.kernel"][1] == "o (i0 i1 i2) -> (i1 i2 i0) o"


@pytest.mark.parametrize(
    "extra", [lambda: keras.layers.Dense(3, name="extra"), lambda: keras.layers.BatchNormalization(
        center=False, scale=False, name="extra")]
)  # fmt: skip
def test_a_frozen_head_that_torch_lacks_is_not_taken_for_a_constant(extra):
    def keras_side() -> Any:
        given = keras.Input((8,))
        x = keras.layers.Dense(6, activation="tanh")(given)
        other = extra()
        model = keras.Model(given, [keras.layers.Dense(4, name="head")(x), other(x)])
        other.trainable = False
        return model

    found = statuses(
        matched(lambda: nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4)), keras_side, image(3, 8))
    )
    assert {status for name, status in found.items() if name.startswith("extra")} == {"unmatched"}
    assert found["head.kernel"] == "proven"


@pytest.mark.parametrize(("theirs", "ours"), [(4, 3), (3, 4)])
def test_a_chain_is_not_proven_where_a_layer_of_its_size_is_missing(theirs, ours):
    def torch_side() -> Any:
        return nn.Sequential(*(one for _ in range(theirs) for one in (nn.Linear(6, 6), nn.Tanh())), nn.Linear(6, 5))

    def keras_side() -> Any:
        given = x = keras.Input((6,))
        for place in range(ours):
            x = keras.layers.Dense(6, activation="tanh", name=f"block_{place}")(x)
        return keras.Model(given, keras.layers.Dense(5, name="end")(x))

    match = matched(torch_side, keras_side, image(7, 6))
    assert not proven(match)
    assert "has no counterpart, and the outputs differ" in str(match)


class WithTop(nn.Module):
    """A second result that is made of the first by a layer of the size of another, as a pooler is."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.pooler = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Any) -> Any:
        x = self.b(torch.tanh(self.a(x)))
        return x, torch.tanh(self.pooler(x))


def test_what_comes_after_the_outputs_of_keras_may_be_missing():
    def keras_side() -> Any:
        given = keras.Input((6,))
        return keras.Model(given, keras.layers.Dense(6, name="two")(keras.layers.Dense(6, activation="tanh")(given)))

    match = matched(WithTop, keras_side, image(7, 6))
    assert set(statuses(match).values()) == {"proven"}
    assert all(reason.startswith("nothing of the Keras model comes after it") for reason in match.left.values())


def test_a_separable_convolution_has_its_bias_with_the_second_kernel():
    def keras_side() -> Any:
        given = keras.Input((6, 5, 3))
        return keras.Model(given, keras.layers.SeparableConv2D(4, 3, name="end")(given))

    def torch_side() -> Any:
        return nn.Sequential(nn.Conv2d(3, 3, 3, groups=3, bias=False), nn.Conv2d(3, 4, 1))

    found = proven(matched(torch_side, keras_side, image(2, 3, 6, 5)))
    assert found["end.bias"] == (("1.bias",), "... -> ...")
    assert len(found) == 3


def test_a_normalisation_over_all_axes_of_an_image():
    def keras_side() -> Any:
        given = keras.Input((6, 5, 6))
        x = keras.layers.LayerNormalization(axis=[1, 2, 3], epsilon=1e-5, name="norm")(given)
        return keras.Model(given, keras.layers.Conv2D(4, 1, name="end")(x))

    def torch_side() -> Any:
        return nn.Sequential(nn.LayerNorm([6, 6, 5]), nn.Conv2d(6, 4, 1))

    found = proven(matched(torch_side, keras_side, image(2, 6, 6, 5)))
    assert found["norm.gamma"] == (("0.weight",), "o i k -> i k o")
    assert len(found) == 4


class Summed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 5), nn.Linear(6, 5)

    def forward(self, x: Any, y: Any) -> Any:
        return torch.tanh(self.a(x)) * self.b(y)


def test_two_inputs_of_one_shape_are_two_where_keras_has_two():
    def keras_side() -> Any:
        x, y = keras.Input((6,)), keras.Input((6,))
        return keras.Model([x, y], keras.layers.Dense(5, activation="tanh")(x) * keras.layers.Dense(5, name="b")(y))

    match = matched(Summed, keras_side, image(7, 6), image(7, 6) + 1)
    assert set(statuses(match).values()) == {"proven"}


class TwoSummed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False), nn.Linear(8, 3)

    def forward(self, x: Any) -> Any:
        return self.head(torch.tanh(self.a(x) + self.b(x)))


def test_layers_that_are_exchanged_keep_their_layout():
    def keras_side() -> Any:
        given = keras.Input((8,))
        x = keras.ops.tanh(Untransposed(name="one")(given) + Untransposed(name="two")(given))
        return keras.Model(given, keras.layers.Dense(3, name="end")(x))

    found = statuses(matched(TwoSummed, keras_side, image(4, 8)))
    assert found == {"one.kernel": "ambiguous", "two.kernel": "ambiguous", "end.kernel": "proven", "end.bias": "proven"}


class ForEachHead(nn.Module):
    """Attention with one kernel for all three, where each head has its own queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Any) -> Any:
        q, k, v = self.qkv(x).unflatten(-1, (2, 3, 4)).permute(3, 0, 2, 1, 4)
        y = torch.softmax(q @ k.transpose(-1, -2) / 2, -1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


class ForEachHeadKeras(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.all_three, self.end = keras.layers.Dense(24), keras.layers.Dense(8)

    def call(self, x: Any) -> Any:
        q, k, v = keras.ops.unstack(
            keras.ops.transpose(keras.ops.reshape(self.all_three(x), (-1, 6, 2, 3, 4)), (3, 0, 2, 1, 4))
        )
        y = keras.ops.matmul(keras.ops.softmax(keras.ops.matmul(q, keras.ops.transpose(k, (0, 1, 3, 2))) / 2), v)
        return self.end(keras.ops.reshape(keras.ops.transpose(y, (0, 2, 1, 3)), (-1, 6, 8)))


def test_what_is_packed_for_each_head_is_matched():
    match = matched(ForEachHead, heads_keras, image(2, 6, 8))
    assert len(proven(match)) == len(match.rows) == 8
    [fill] = [
        fill for link in match.links for fill in link.fills if fill.tensors == ("weight",) and link.torch == "qkv"
    ]
    kernel = RNG.normal(size=(24, 8))
    laid = pattern(fill.axes).apply([kernel], [(8, 2, 4)] * 3, dict(fill.sizes))
    for name, value in zip(fill.variables, laid, strict=True):
        at = ["query", "key", "value"].index(name.split("_")[0])
        np.testing.assert_array_equal(value, kernel.reshape(2, 3, 4, 8)[:, at].transpose(2, 0, 1))
    match = matched(Attending, ForEachHeadKeras, image(2, 6, 8))
    assert len(proven(match)) == len(match.rows) == 4
    assert [one[:2] for one in match.outputs] == [("", "")]


class FiveSummed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branches, self.head = nn.ModuleList(nn.Linear(8, 6) for _ in range(5)), nn.Linear(6, 3)

    def forward(self, x: Any) -> Any:
        return self.head(torch.tanh(sum(by * one(x) for by, one in zip((1, 2, 1, 3, 4), self.branches, strict=True))))


def test_layers_that_are_far_apart_may_be_exchanged_too():
    def keras_side() -> Any:
        given = keras.Input((8,))
        branches = [keras.layers.Dense(6, name=f"branch_{place}")(given) for place in range(5)]
        x = keras.ops.tanh(sum(by * one for by, one in zip((1, 2, 1, 3, 4), branches, strict=True)))
        return keras.Model(given, keras.layers.Dense(3, name="end")(x))

    found = statuses(matched(FiveSummed, keras_side, image(4, 8)))
    assert [found[f"branch_{place}.kernel"] for place in range(5)] == [
        "ambiguous", "proven", "ambiguous", "proven", "proven"
    ]  # fmt: skip


class Twins(nn.Module):
    """Two networks of one shape, of which one may be of no use."""

    def __init__(self, both: bool = True) -> None:
        super().__init__()
        self.student, self.teacher = (nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)) for _ in range(2))
        self._both = both

    def forward(self, x: Any) -> Any:
        return (self.student(x), self.teacher(x)) if self._both else self.student(x)


def twins_keras(*names: str) -> Any:
    given = keras.Input((8,))
    hidden = [keras.layers.Dense(6, activation="tanh", name=f"{name}_hidden")(given) for name in names]
    return keras.Model(
        given, [keras.layers.Dense(3, name=f"{name}_out")(x) for name, x in zip(names, hidden, strict=True)]
    )


@pytest.mark.parametrize(
    ("names", "status"),
    [(("student", "teacher"), "proven"), (("teacher", "student"), "ambiguous"), (("one", "two"), "ambiguous")],
)
def test_twins_are_told_by_names_and_the_order_of_outputs_together(names, status):
    match = matched(Twins, lambda: twins_keras(*names), image(4, 8))
    assert set(statuses(match).values()) == {status}
    if status == "proven":
        assert proven(match)["student_out.kernel"][0] == ("student.2.weight",)


def test_a_layer_that_nothing_uses_is_no_counterpart():
    match = matched(lambda: Twins(False), lambda: twins_keras("one", "two"), image(4, 8))
    assert not proven(match)


def test_a_model_of_half_precision_is_matched():
    def keras_side() -> Any:
        given = keras.Input((8,))
        x = keras.layers.Dense(6, activation="tanh", dtype="mixed_float16")(given)
        return keras.Model(given, keras.layers.Dense(3, name="end", dtype="mixed_float16")(Turnless()(x)))

    def torch_side() -> Any:
        return nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 3))

    assert statuses(matched(torch_side, keras_side, image(4, 8)))["end.kernel"] == "proven"


class Turnless(keras.layers.Layer):
    """A square kernel that is used as torch uses it, so that layouts must be tried."""

    def __init__(self) -> None:
        super().__init__(dtype="mixed_float16")

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(shape=(6, 6), name="kernel")
        self.bias = self.add_weight(shape=(6,), name="bias")

    def call(self, x: Any) -> Any:
        return keras.ops.matmul(x, keras.ops.transpose(self.kernel)) + self.bias


class FromItsFirstCall(keras.Model):
    """It has no variables before it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = keras.layers.Dense(6, activation="tanh"), keras.layers.Dense(3)

    def call(self, x: Any) -> Any:
        return self.last(self.first(x))


def test_a_model_that_is_built_by_its_first_call_is_converted(tmp_path):
    def torch_side() -> Any:
        return nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))

    match = matched(torch_side, FromItsFirstCall, image(4, 8))
    torch.save(torch_side().state_dict(), tmp_path / "net.pth")
    report = converter.convert(match.pair, tmp_path / "net.pth", tmp_path / "net.weights.h5")
    assert report.numerical.full


def test_a_normalisation_without_a_shift():
    def theirs() -> Any:
        return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8, bias=False))

    def ours() -> Any:
        given = keras.Input((6,))
        x = keras.layers.LayerNormalization(center=False, epsilon=1e-5, name="norm")(keras.layers.Dense(8)(given))
        return keras.Model(given, x)

    assert set(statuses(matched(theirs, ours, image(7, 6))).values()) == {"proven"}


class WithTables(keras.layers.Layer):
    """A table that its own code computes, and one that nothing reads."""

    def build(self, shape: Any) -> None:
        values = keras.initializers.Constant(np.linspace(-1, 1, 6))
        self.used = self.add_weight(shape=(6,), name="used", trainable=False, initializer=values)
        self.spare = self.add_weight(shape=(6,), name="spare", trainable=False)

    def call(self, x: Any) -> Any:
        return x + self.used


def test_what_keras_computes_is_kept_where_results_show_that_it_is_right():
    class Theirs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(6, 5)

        def forward(self, x: Any) -> Any:
            return self.one(x + torch.linspace(-1, 1, 6))

    def ours() -> Any:
        given = keras.Input((6,))
        return keras.Model(given, keras.layers.Dense(5, name="one")(WithTables(name="tables")(given)))

    match = matched(Theirs, ours, image(7, 6))
    assert proven(match)["tables.used"] == ((), "= built")
    assert statuses(match)["tables.spare"] == "proposed"
