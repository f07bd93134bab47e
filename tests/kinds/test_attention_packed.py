"""Query, key and value packed or apart, in torch and in Keras, and tables of relative positions: there and back."""

from collections import OrderedDict

import keras
import numpy as np
import pytest
import torch
from torch import nn

from converter import Probe, Row, kinds
from tests.support.networks import Conv1D, built, numbers, pair, refused, state_of, there_and_back

K, ops = keras.layers, keras.ops
N, L, E, H = 2, 5, 12, 3
D = E // H
SHAPE = (None, None, E)


class Attention(nn.Module):
    """Attention of one input by linear layers: one for all, (3, h, d) or (h, 3, d), or one for each."""

    def __init__(self, packed=True, per_head=False, linear=nn.Linear, bias=True):
        super().__init__()
        more = {} if bias else {"bias": False}
        self.per_head = per_head
        if packed:
            self.qkv = linear(E, 3 * E, **more)
        else:
            self.q_proj, self.k_proj, self.v_proj = (linear(E, E, **more) for _ in "qkv")
        self.proj = linear(E, E, **more)

    def forward(self, x):
        n, length, _ = x.shape
        if hasattr(self, "qkv"):
            axes, places = ((H, 3, D), (3, 0, 2, 1, 4)) if self.per_head else ((3, H, D), (2, 0, 3, 1, 4))
            q, k, v = self.qkv(x).reshape(n, length, *axes).permute(places)
        else:
            each = (self.q_proj, self.k_proj, self.v_proj)
            q, k, v = (one(x).reshape(n, length, H, D).transpose(1, 2) for one in each)
        weights = (q @ k.transpose(-1, -2) * D**-0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(n, length, E))


class KerasAttention(K.Layer):
    """The same of Keras: `sort` is "packed", "per head", "apart" or "heads", which are EinsumDense."""

    def __init__(self, sort, bias=True, names="qkv"):
        super().__init__()
        self.sort, self.names = sort, names

        def dense(units, shape=SHAPE):
            return built(K.Dense(units, use_bias=bias), shape)

        if sort in ("packed", "per head"):
            self.qkv = dense(3 * E)
        elif sort == "apart":
            self.q, self.k, self.v = (dense(E) for _ in "qkv")
        else:
            each = (K.EinsumDense("abc,cde->abde", (None, H, D), bias_axes="de" if bias else None) for _ in "qkv")
            self.q, self.k, self.v = (built(one, SHAPE) for one in each)
        if sort == "heads":
            self.proj = K.EinsumDense("abcd,cde->abe", (None, E), bias_axes="e" if bias else None)
            self.proj.build((None, None, H, D))
        else:
            self.proj = dense(E)
        self.built = True

    def call(self, x):
        n, length, _ = x.shape
        if self.sort == "packed":
            q, k, v = ops.unstack(ops.reshape(self.qkv(x), (n, length, 3, H, D)), axis=2)
        elif self.sort == "per head":
            q, k, v = ops.unstack(ops.reshape(self.qkv(x), (n, length, H, 3, D)), axis=3)
        else:
            q, k, v = (ops.reshape(getattr(self, name)(x), (n, length, H, D)) for name in self.names)
        weights = ops.softmax(ops.einsum("nlhd,nshd->nhls", q, k) * D**-0.5)
        found = ops.einsum("nhls,nshd->nlhd", weights, v)
        return self.proj(found if self.sort == "heads" else ops.reshape(found, (n, length, E)))


class Model(keras.Model):
    """A norm, for something must lie before it, and an attention."""

    def __init__(self, make):
        super().__init__()
        self.norm = built(K.LayerNormalization(epsilon=1e-5), SHAPE)
        self.attn = make()
        self.built = True

    def call(self, x):
        x = self.norm(x)
        return self.attn(x, x) if isinstance(self.attn, K.MultiHeadAttention) else self.attn(x)


def of_keras(bias=True):
    return lambda: Model(lambda: built(K.MultiHeadAttention(H, D, use_bias=bias), SHAPE, SHAPE, SHAPE))


def of_ours(sort, **more):
    return lambda: Model(lambda: KerasAttention(sort, **more))


def of_torch(**more):
    return lambda: nn.Sequential(OrderedDict(norm=nn.LayerNorm(E), attn=Attention(**more)))


def attention_pair(build_tf, build_torch, *rows):
    def probes(config, rng):
        return [Probe({"input": numbers(N, L, E)})]

    return pair(build_tf, build_torch, [Row("norm", kinds.LAYER_NORM), *rows], probes)


QKV, PROJ = Row("attn.{qkv,proj}", kinds.DENSE), Row("attn.proj", kinds.DENSE)
GPT2 = {"linear": Conv1D}
# What torch has, what Keras has, and the rows between them.
CASES = {
    "a Dense of the same order": ({}, of_ours("packed"), [QKV]),
    "a Dense of the same order for each head": ({"per_head": True}, of_ours("per head"), [QKV]),
    "GPT-2's, packed": (GPT2, of_ours("packed"), [Row("attn.{qkv,proj}", kinds.CONV1D_GPT2)]),
    "Keras's attention": ({}, of_keras(), [Row("attn", kinds.packed_attention())]),
    "Keras's attention, no bias": (
        {"bias": False},
        of_keras(bias=False),
        [Row("attn", kinds.packed_attention())],
    ),
    "Keras's attention, for each head": (
        {"per_head": True},
        of_keras(),
        [Row("attn", kinds.packed_attention(per_head=True))],
    ),
    "Keras's attention, GPT-2's": (GPT2, of_keras(), [Row("attn", kinds.packed_attention(transposed=True))]),
    "Keras's attention, of four": (
        {"packed": False},
        of_keras(),
        [Row("attn", kinds.separate_attention(out="proj"))],
    ),
    "three Dense": ({}, of_ours("apart"), [Row("attn.qkv", kinds.split_dense(), keras="attn"), PROJ]),
    "three Dense, in a stage": (
        {},
        of_ours("apart"),
        [Row("attn", kinds.STAGE), Row("attn.qkv", kinds.split_dense(), keras="attn"), PROJ],
    ),
    "three Dense, no bias": (
        {"bias": False},
        of_ours("apart", bias=False),
        [Row("attn.qkv", kinds.split_dense(), keras="attn"), PROJ],
    ),
    "three Dense, for each head": (
        {"per_head": True},
        of_ours("apart"),
        [Row("attn.qkv", kinds.split_dense(heads=H), keras="attn"), PROJ],
    ),
    "one Dense of three": (
        {"packed": False},
        of_ours("packed"),
        [Row("attn", kinds.packed_dense(), keras="attn.qkv"), PROJ],
    ),
    "one Dense of three, for each head": (
        {"packed": False},
        of_ours("per head"),
        [Row("attn", kinds.packed_dense(heads=H), keras="attn.qkv"), PROJ],
    ),
    "EinsumDense": (
        {"packed": False},
        of_ours("heads"),
        [
            Row("attn.{q,k,v}_proj", kinds.dense_to_heads(H), keras="attn.{q,k,v}"),
            Row("attn.proj", kinds.dense_from_heads(H)),
        ],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_packed_or_apart(tmp_path, case):
    theirs, build, rows = CASES[case]
    there_and_back(attention_pair(build, of_torch(**theirs), *rows), tmp_path, verify="train")


FAULTS = {
    "packed for each head": ({}, of_keras(), kinds.packed_attention(per_head=True), "attn", "layer that differs: attn"),
    "not packed for each head": (
        {"per_head": True},
        of_keras(),
        kinds.packed_attention(),
        "attn",
        "layer that differs: attn.*suspect the order of its heads",
    ),
    "not transposed": (
        {"linear": Conv1D},
        of_keras(),
        kinds.packed_attention(),
        "attn",
        "wrong shape: attn.qkv.weight",
    ),
    "query and key": (
        {"packed": False},
        of_keras(),
        kinds.separate_attention("k_proj", "q_proj", "v_proj", "proj"),
        "attn",
        "layer that differs: attn",
    ),
    "a Dense of another order": (
        {"per_head": True},
        of_ours("packed"),
        kinds.DENSE,
        "attn.{qkv,proj}",
        "attn.qkv agrees",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_another_order_is_named(tmp_path, fault):
    theirs, build, kind, path, told = FAULTS[fault]
    one = attention_pair(build, of_torch(**theirs), Row(path, kind))
    refused(one, state_of(one), tmp_path, told)


def test_another_order_of_three_is_named(tmp_path):
    def split(*names, **more):
        return Row("attn.qkv", kinds.split_dense(names, **more), keras="attn")

    one = attention_pair(of_ours("apart"), of_torch(), split("k", "q", "v"), PROJ)
    refused(one, state_of(one), tmp_path, "attn.proj")
    one = attention_pair(of_ours("apart"), of_torch(per_head=True), split("q", "k", "v"), PROJ)
    refused(one, state_of(one), tmp_path, "attn.proj")
    one = attention_pair(of_ours("apart", names="kqv"), of_torch(), split("q", "k", "v"), PROJ)
    refused(one, state_of(one), tmp_path, "attn.qkv agrees, the input of attn.proj does not")
    packed = Row("attn", kinds.packed_dense(("k_proj", "q_proj", "v_proj")), keras="attn.qkv")
    one = attention_pair(of_ours("packed"), of_torch(packed=False), packed, PROJ)
    refused(one, state_of(one), tmp_path, "norm agrees, the input of attn.proj does not")


def test_a_module_that_is_called_with_more_wants_a_call(tmp_path):
    class Masked(Attention):
        def forward(self, x, mask=None):
            return super().forward(x * (1 if mask is None else mask))

    def torchs():
        made = of_torch()()
        made.attn = Masked()
        made.forward = lambda input: made.attn(made.norm(input), mask=input[..., :1])
        return made

    class Multiplied(Model):
        def call(self, x):
            y = self.norm(x) * x[..., :1]
            return self.attn(y, y)

    def build():
        return Multiplied(lambda: built(K.MultiHeadAttention(H, D), SHAPE, SHAPE, SHAPE))

    one = attention_pair(build, torchs, Row("attn", kinds.packed_attention()))
    refused(one, state_of(one), tmp_path, "the kind does not know what mask means; give `call`")
    told = kinds.packed_attention(call=lambda layer, x, mask: layer(x * mask, x * mask))
    one = attention_pair(build, torchs, Row("attn", told))
    there_and_back(one, tmp_path)
    whole = attention_pair(build, torchs, Row("attn", kinds.packed_attention(alone=False)))
    report = there_and_back(whole, tmp_path)
    assert [one.name for one in report.numerical.layers] == ["norm"]


# --- Tables of relative positions -------------------------------------------------------------------------------------

HEIGHT, WIDTH = 3, 4
ROWS, COLUMNS = 2 * HEIGHT - 1, 2 * WIDTH - 1


class Positions(nn.Module):
    """A bias (h, L, L) of positions of a window: from a table of a row for each difference, row first."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(ROWS * COLUMNS, H))

    def forward(self, x):
        rows, columns = differences()
        bias = self.table[torch.from_numpy(rows * COLUMNS + columns)]
        return x + bias.permute(2, 0, 1)


def differences():
    places = np.stack(np.meshgrid(np.arange(HEIGHT), np.arange(WIDTH), indexing="ij"), -1).reshape(-1, 2)
    found = places[:, None] - places[None] + (HEIGHT - 1, WIDTH - 1)
    return found[..., 0], found[..., 1]


class KerasPositions(keras.Model):
    def __init__(self, shape, look):
        super().__init__()
        self.table = self.add_weight(name="table", shape=shape)
        self.look = look
        self.built = True

    def call(self, x):
        return x + self.look(self.table.value, *differences())


TABLES = {
    "row first": ("(y x) h -> (y x) h", (ROWS * COLUMNS, H), lambda t, y, x: ops.take(t, y * COLUMNS + x, 0)),
    "column first": ("(y x) h -> (x y) h", (ROWS * COLUMNS, H), lambda t, y, x: ops.take(t, x * ROWS + y, 0)),
    "heads first": (
        "(y x) h -> h y x",
        (H, ROWS, COLUMNS),
        lambda t, y, x: ops.take(ops.transpose(ops.reshape(t, (H, -1))), y * COLUMNS + x, 0),
    ),
}


@pytest.mark.parametrize("order", TABLES)
def test_a_table_of_relative_positions(tmp_path, order):
    axes, shape, look = TABLES[order]

    def build():
        return KerasPositions(shape, lambda *given: ops.transpose(look(*given), (2, 0, 1)))

    def table(axes):
        sizes = {"y": ROWS} if "(y x) h ->" in axes else {"x": COLUMNS}

        def probes(config, rng):
            return [Probe({"x": numbers(N, H, HEIGHT * WIDTH, HEIGHT * WIDTH)})]

        return pair(build, Positions, [Row("table", kinds.parameter(axes, **sizes))], probes)

    there_and_back(table(axes), tmp_path, verify="train")
    wrong = {"row first": "(y x) h -> (x y) h", "column first": "(y x) h -> (y x) h"}.get(order, "(x y) h -> h y x")
    one = table(wrong)
    refused(one, state_of(one), tmp_path, "outputs that differ: output")
