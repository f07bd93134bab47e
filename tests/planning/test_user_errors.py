"""What a user's own pair raises is told as the pair's, with the line; the checkpoint is not blamed for it."""

import contextlib
import dataclasses
import importlib
import itertools
import sys
import textwrap

import pytest
import torch

import converter
import tf_models
from converter.blame import PairError
from tests.support.checkpoints import save
from tests.support.pairs import registered
from tests.support.running import run

PAIR = """\
import keras
import numpy as np
from torch import nn

from converter import Mapping, Option, Pair, Probe, Row, kinds


class Model(keras.Model):
    def __init__(self, width, heads=1):
        super().__init__()
        self.fc = keras.layers.Dense(width)
        self.fc.build((None, 4))
        self.built = True
        {call}

    def call(self, x):
        return self.fc(keras.ops.reshape(x, (-1, 5)))


def configure(shapes, options):
    {configure}
    return {{"width": shapes["fc.weight"][0]}}


def mapping(config):
    {mapping}
    return Mapping([Row("fc", kinds.DENSE)])


def build_tf(**config):
    {build_tf}
    return Model(**config)


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc = nn.Linear(4, width)

    def forward(self, x):
        return self.fc(x)


PAIR = Pair(
    "faulty", mapping, lambda config, rng: [Probe({{"x": rng.standard_normal((5, 4), dtype=np.float32)}})],
    build_tf=build_tf, build_torch=Net, configure=configure, fallback={fallback},
)
"""
LINES = {field: PAIR.splitlines().index(f"    {'    ' * (field == 'call')}{{{field}}}") + 1
         for field in ("call", "configure", "mapping", "build_tf")}  # fmt: skip
COUNT = itertools.count()


@pytest.fixture
def faulty(tmp_path, monkeypatch):
    """Makes a pair with these statements put into its functions, and a checkpoint that fits it."""
    monkeypatch.syspath_prepend(tmp_path)
    made = []
    stack = contextlib.ExitStack()

    def make(fallback=None, **statements):
        module = f"faulty_{next(COUNT)}"
        text = PAIR.format(**{**dict.fromkeys(LINES, "pass"), **statements, "fallback": fallback})
        (tmp_path / f"{module}.py").write_text(text)
        made.append(module)
        stack.enter_context(registered(importlib.import_module(module).PAIR))
        return module

    with stack:
        yield make
    for module in made:
        sys.modules.pop(module, None)


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    return save(torch.nn.ModuleDict({"fc": torch.nn.Linear(4, 3)}).state_dict(), tmp_path)


def failed(checkpoint, **more):
    with pytest.raises(converter.ConversionError) as caught:
        converter.plan("faulty", checkpoint, **more)
    return str(caught.value)


def test_the_pair_is_right_without_faults(faulty, checkpoint):
    faulty()
    assert len(converter.plan("faulty", checkpoint).steps) == 2


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("raise RuntimeError('a\\nb')", "RuntimeError: a"),
        ("undefined", "NameError: name 'undefined' is not defined"),
        ("keras.layers.Dropout(-1)", "ValueError: Invalid value received for argument `rate`"),
        ("config['depth']", "KeyError: 'depth'"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("keras.ops.matmul(np.ones((2, 3)), np.ones((2, 3)))", "InvalidArgumentError: Matrix size-incompatible"),
    ],
)
@pytest.mark.parametrize("fallback", [None, {"width": 3}])
def test_the_builder_is_named_with_its_line(faulty, checkpoint, statement, said, fallback):
    module = faulty(build_tf=statement, fallback=fallback)
    told = failed(checkpoint)
    assert f"build_tf of faulty failed at {module}.py:{LINES['build_tf']}: {said}" in told
    assert "(the configuration is {'width': 3})" in told
    assert "does not fit" not in told


def test_a_layer_that_fails_while_it_is_built_is_told_without_keras_s_frame(faulty, checkpoint):
    module = faulty(call="self(np.ones((2, 4), np.float32))")
    told = failed(checkpoint)
    line = PAIR.splitlines().index("        return self.fc(keras.ops.reshape(x, (-1, 5)))") + 1
    assert (
        f"build_tf of faulty failed at {module}.py:{line}: InvalidArgumentError: Input to reshape is a tensor" in told
    )
    assert "Exception encountered" not in told
    assert "\\x1b" not in told


def test_what_is_wrong_with_the_names_is_told_as_well(faulty, checkpoint, tmp_path):
    module = faulty(build_tf="raise ValueError('no')")
    torch.save({**torch.load(checkpoint, weights_only=True), "more": torch.zeros(2)}, tmp_path / "more.pth")
    told = failed(tmp_path / "more.pth")
    assert told.startswith("more.pth does not fit faulty: unexpected: more; build_tf of faulty failed at ")
    assert f"{module}.py:{LINES['build_tf']}: ValueError: no" in told


@pytest.mark.parametrize("fallback", [None, {"width": 3}])
@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("shapes.fc", "AttributeError: 'dict' object has no attribute 'fc'"),
        ("None + 1", "TypeError: unsupported operand type(s)"),
        ("shapes['fc.weight'][2]", "IndexError: tuple index out of range"),
        ("assert False, 'never'", "AssertionError: never"),
    ],
)
def test_a_fault_in_configure_is_named_with_its_line(faulty, checkpoint, statement, said, fallback):
    module = faulty(configure=statement, fallback=fallback)
    told = failed(checkpoint)
    assert f"configure of faulty failed at {module}.py:{LINES['configure']}: {said}" in told
    assert "holds no tensor" not in told


def test_how_configure_says_that_the_shapes_are_another_network_s(faulty, checkpoint):
    module = faulty(configure="raise ValueError('width is odd')")
    place = f"{module}.py:{LINES['configure']}"
    assert f"its shapes are not those of this network ({place}: ValueError: width is odd)" in failed(checkpoint)
    faulty(configure="shapes['head.weight']")
    assert "it holds no tensor of faulty; its names start with: fc (2)" in failed(checkpoint)
    module = faulty(configure="shapes['head.weight']", fallback={"width": 3})
    assert f"head.weight is missing, and sizes are read from it ({module}.py" in failed(checkpoint)
    module = faulty(configure="{768: 12}[shapes['fc.weight'][0]]")
    assert f"({module}.py:{LINES['configure']}: KeyError: 3)" in failed(checkpoint)
    module = faulty(configure="raise KeyError")
    assert f"({module}.py:{LINES['configure']}: KeyError)" in failed(checkpoint)
    faulty(configure="return 7")
    assert "configure of faulty returned a int, not a dict" in failed(checkpoint)


@pytest.mark.parametrize("fallback", [None, {"width": 3}])
def test_a_fault_in_the_table_is_named_with_its_line(faulty, checkpoint, fallback):
    module = faulty(mapping="config['depth']", fallback=fallback)
    assert f"mapping of faulty failed at {module}.py:{LINES['mapping']}: KeyError: 'depth'" in failed(checkpoint)
    module = faulty(mapping="Mapping([Row('fc', kinds.DENSE), Row('fc', kinds.DENSE)])", fallback=fallback)
    assert f"mapping of faulty failed at {module}.py:{LINES['mapping']}: ValueError: two rows" in failed(checkpoint)
    faulty(mapping="return [1]", fallback=fallback)
    assert "mapping of faulty returned a list, not a converter.Mapping" in failed(checkpoint)


ROWS = {
    "CONV_2D": (
        "kinds.CONV_2D",
        "does not fit the model at fc.kernel: an array of shape (4, 3) does not have the axes (kh kw i o); ",
        "",
    ),
    "LSTM": (
        "kinds.LSTM",
        "the mapping does not fit the model at fc: it is a Dense, no recurrent layer that is known",
        "",
    ),
    "STAGE": ("kinds.STAGE", "unexpected: fc.weight, fc.bias; ", " without weight, bias"),
    "EMBEDDING": ("kinds.EMBEDDING", "unexpected: fc.bias; ", " without bias"),
    "MULTIHEAD_ATTENTION": ("kinds.MULTIHEAD_ATTENTION", "unexpected: fc.weight, fc.bias; ", " without weight, bias"),
    "LAYER_NORM": ("kinds.LAYER_NORM", "fc.weight has no variable fc.gamma", ""),
    "SUM": (
        "kinds.Kind('SUM', (kinds.leaf(('weight', 'bias'), 'kernel', 'i, o -> (i + o)', fold=kinds.Fold("
        "'SUM', forward=None, back=None, shapes=lambda shapes: shapes[1:] + [()[1]], cost='all')),))",
        "the mapping does not fit the model at fc.kernel: an array of shape (4, 3) does not have the axes",
        "",
    ),
}


@pytest.mark.parametrize("kind", ROWS)
def test_a_row_of_a_kind_that_is_not_the_layer_s_is_named_with_both(faulty, checkpoint, kind):
    row, cause, without = ROWS[kind]
    module = faulty(mapping=f"return Mapping([Row('fc', {row})])")
    told = failed(checkpoint)
    line = LINES["mapping"] - 1
    assert cause in told
    assert (
        f"the row fc of `mapping` of faulty ({module}.py:{line}) is of the kind {kind}{without}, "
        "the Keras layer there of the class Dense"
    ) in told


def test_rows_that_are_wrong_alike_are_named_once(faulty, tmp_path):
    faulty(
        call="for one in 'abc': setattr(self, one, keras.layers.Dense(3)); getattr(self, one).build((None, 4))",
        mapping="return Mapping([Row('fc', kinds.DENSE), Row('{a,b,c}', kinds.PRELU)])",
    )
    layers = torch.nn.ModuleDict({name: torch.nn.Linear(4, 3) for name in ("fc", "a", "b", "c")})
    told = failed(save(layers.state_dict(), tmp_path))
    assert told.count("of the kind") == 1
    assert "the rows a, b, c of `mapping` of faulty" in told
    assert "are of the kind PRELU without bias, the Keras layer there of the class Dense" in told


def test_a_length_that_is_none_is_told_as_the_mapping_s(faulty, checkpoint):
    module = faulty(mapping="return Mapping([Row('fc', kinds.DENSE_FLATTENED.sized(h='4', w=1))])")
    place = f"mapping of faulty failed at {module}.py:{LINES['mapping']}: ValueError: the length of the axis h of "
    assert place in failed(checkpoint)
    faulty(
        mapping="import dataclasses; leaf = kinds.DENSE_FLATTENED.leaves[0]; return Mapping([Row('fc', "
        "dataclasses.replace(kinds.DENSE, leaves=(dataclasses.replace(leaf, sizes=(('h', '4'), ('w', 1))),)))])"
    )
    told = failed(checkpoint)
    assert "the mapping does not fit the model at fc.kernel: TypeError: " in told
    assert "the row fc of `mapping` of faulty" in told


def test_a_layer_that_keras_does_not_save(faulty, tmp_path):
    faulty(
        call="self.held = keras.layers.Layer(); self.held.activity_regularizer = keras.layers.Dense(2); "
        "self.held.activity_regularizer.build((None, 4))",
        mapping="return Mapping([Row('fc', kinds.DENSE), Row('held', kinds.DENSE, keras='held.activity_regularizer')])",
    )
    layers = {"fc": torch.nn.Linear(4, 3), "held": torch.nn.Linear(4, 2)}
    assert failed(save(torch.nn.ModuleDict(layers).state_dict(), tmp_path)) == (
        "Keras does not save 2 of the variables of faulty, first held.activity_regularizer.kernel; no layer can stand "
        "under a name that Keras has for itself, or, before Keras 3.15, in a list within a list"
    )


@pytest.mark.parametrize("direction", ["forward", "back", "shapes"])
def test_a_fold_that_fails_is_named_with_its_kind_and_tensors(faulty, tmp_path, direction):
    functions = {
        "forward": "lambda t: [t[0] + t[1]]", "back": "lambda a: [a[0], a[0]]", "shapes": "lambda s: [s[0], s[0]]",
    }  # fmt: skip
    functions[direction] = functions[direction].replace("[0]", "[7]")
    fold = ", ".join(f"{name}={text}" for name, text in functions.items())
    module = faulty(
        mapping="return Mapping([Row('fc', kinds.Kind('TWO', (kinds.DENSE.leaves[0], kinds.leaf(('bias', 'more'), "
        f"'bias', 'o -> o', fold=kinds.Fold('SUM', {fold}, cost='one')))))])"
    )
    state = {**torch.nn.ModuleDict({"fc": torch.nn.Linear(4, 3)}).state_dict(), "fc.more": torch.ones(3)}
    output = tmp_path / "out.weights.h5"
    checkpoint = save(state, tmp_path)

    def there_and_back():
        converter.convert("faulty", checkpoint, output, verify="lossless")
        assert direction == "back"
        converter.restore(output, tmp_path / "back.pth")

    with pytest.raises(converter.ConversionError) as caught:
        there_and_back()
    place = f"{module}.py:{LINES['mapping']}: IndexError: "
    if direction == "shapes":
        assert f"the mapping does not fit the model at fc.bias: {place}" in str(caught.value)
        assert "the row fc of `mapping` of faulty" in str(caught.value)
    else:
        told = f"the fold SUM of the kind TWO for fc.bias and fc.more of faulty failed at {place}"
        assert told in str(caught.value)


def test_what_the_shapes_are_is_told_whatever_the_names_are(faulty, checkpoint):
    """A tensor that is missing is told once, by its name; not where another sentence begins with that."""
    faulty(
        configure="raise ValueError('odd')",
        mapping="return Mapping([Row('fc', kinds.DENSE), Row('its', kinds.PARAMETER)])",
        fallback={"width": 3},
    )
    told = failed(checkpoint)
    assert "missing: its" in told
    assert "its shapes are not those of this network" in told


@pytest.mark.parametrize("where", ["configure", "mapping"])
def test_auto_passes_over_a_pair_that_fails(faulty, checkpoint, where):
    faulty(**{where: "raise AttributeError('x')"})
    with pytest.raises(
        converter.ConversionError, match=r"no model fits this checkpoint; known: .*faulty.*--model to see why"
    ):
        converter.plan("auto", checkpoint)


def test_a_builder_that_is_not_to_be_found(faulty, checkpoint):
    for place, said in (("no_such_module:build", "ModuleNotFoundError"), ("math:no_such_name", "AttributeError")):
        one = dataclasses.replace(sys.modules[faulty()].PAIR, build_tf=place)
        with registered(one), pytest.raises(PairError, match=f"^build_tf of faulty failed: {said}: "):
            converter.plan("faulty", checkpoint)


def test_loading_and_restoring_name_the_line_too(faulty, checkpoint, tmp_path):
    faulty()
    output = tmp_path / "out.weights.h5"
    converter.convert("faulty", checkpoint, output, verify="lossless")
    module = faulty(build_tf="raise RuntimeError('today')")
    place = f"{module}.py:{LINES['build_tf']}: RuntimeError: today"
    with pytest.raises(tf_models.WeightsError, match=f"cannot be built with: {place}") as caught:
        tf_models.load(output)
    assert type(caught.value.__cause__) is RuntimeError
    with pytest.raises(converter.ConversionError, match=f"build_tf of faulty failed at {place}") as caught:
        converter.restore(output, tmp_path / "back.pth")
    assert type(caught.value.__cause__) is RuntimeError
    with pytest.raises(converter.ConversionError, match=place) as caught:
        converter.export(output)
    assert type(caught.value.__cause__) is RuntimeError
    module = faulty(mapping="raise RuntimeError('today')")
    with pytest.raises(
        converter.ConversionError, match=rf"mapping of faulty failed at {module}\.py:{LINES['mapping']}: "
    ):
        converter.restore(output, tmp_path / "back.pth")


def test_the_command_shows_the_line_and_with_debug_the_whole_traceback(faulty, checkpoint, tmp_path):
    module = faulty(build_tf="raise RuntimeError('today')")
    told = f"build_tf of faulty failed at {module}.py:{LINES['build_tf']}: RuntimeError: today"
    done = run("convert", "--pair", f"{module}:PAIR", checkpoint.name, cwd=tmp_path)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert told in line
    done = run("convert", "--pair", f"{module}:PAIR", checkpoint.name, "--debug", cwd=tmp_path)
    assert done.returncode == 1
    assert told in done.stderr.splitlines()[-1]
    assert "Traceback (most recent call last)" in done.stderr
    assert f"{module}.py\", line {LINES['build_tf']}, in build_tf\n    raise RuntimeError('today')" in done.stderr
    (tmp_path / "broken_pair.py").write_text(
        textwrap.dedent("""\
        import os

        os.no_such_name
    """)
    )
    done = run("convert", "--pair", "broken_pair:PAIR", checkpoint.name, cwd=tmp_path)
    assert done.returncode == 2
    assert "--pair broken_pair:PAIR cannot be imported: broken_pair.py:3: AttributeError: module 'os'" in done.stderr
    done = run("convert", "--pair", "broken_pair:PAIR", checkpoint.name, "--debug", cwd=tmp_path)
    assert 'broken_pair.py", line 3, in <module>' in done.stderr
