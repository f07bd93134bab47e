"""Whose error it was: the line of the user's code, and what it says, without what frameworks put around it."""

import importlib
import json
import re
import sys
import textwrap

import keras
import pytest
import tensorflow as tf
import torch
from torch import nn

from converter.blame import PairError, begins, blaming, told, what, where, where_and_what
from converter.errors import ConversionError, UsageError


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Imports a text as a user's module of the name, from a folder that is not the current one."""
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def make(name, text):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        made.append(name)
        importlib.invalidate_caches()
        return importlib.import_module(name)

    yield make
    for name in made:
        sys.modules.pop(name, None)


def raised(function, *args, **kwargs):
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        function(*args, **kwargs)
    return caught.value


def test_the_innermost_line_of_the_user_s_code(module):
    mine = module(
        "blamed_plain",
        """\
        import json

        def inner():
            return json.loads("{")  # raised in the standard library, four frames further

        def outer():
            return inner()
        """,
    )
    error = raised(mine.outer)
    assert where_and_what(error) == (
        "blamed_plain.py:4: JSONDecodeError: "
        "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
    )
    assert told("vit", "build_tf", error).startswith("build_tf of vit failed at blamed_plain.py:4: JSONDecodeError: ")


def test_keras_s_frame_is_taken_off(module):
    mine = module(
        "blamed_keras",
        """\
        import keras

        class Odd(Exception):
            def __init__(self, a, b):
                super().__init__(f"{a} and {b}")

        class Layer(keras.layers.Layer):
            def call(self, x, odd=False):
                if odd:
                    raise Odd(1, 2)
                return keras.ops.matmul(x, x)

        class Model(keras.Model):
            def __init__(self):
                super().__init__()
                self.l = Layer()

            def call(self, x, odd=False):
                return self.l(x, odd=odd)
        """,
    )
    model = mine.Model()
    error = raised(model, tf.ones((2, 3)))
    assert "Exception encountered when calling" in str(error), "else Keras no longer does what is taken off here"
    assert where(error) == "blamed_keras.py:11"
    assert what(error).startswith("InvalidArgumentError: Matrix size-incompatible: In[0]: [2,3], In[1]: [2,3]")
    assert "\x1b" not in what(error)
    assert "\n" not in what(error)
    error = raised(model, tf.ones((2, 3)), odd=True)
    assert type(error) is RuntimeError, "else Keras keeps the type of an odd exception"
    assert where_and_what(error) == "blamed_keras.py:10: Odd: 1 and 2"


def test_a_frame_whose_cause_was_lost_is_taken_off_too():
    text = "Exception encountered when calling Vit.call().\n\n\x1b[1mno such axis\x1b[0m\n\nArguments received by it:"
    assert what(ValueError(text)) == "ValueError: no such axis"


def test_a_traced_call_is_placed_where_it_was_written(module):
    mine = module(
        "blamed_traced",
        """\
        import tensorflow as tf

        def half(x):
            raise ValueError("no half of it")

        @tf.function
        def run(x):
            return half(x)
        """,
    )
    error = raised(mine.run, tf.ones(2))
    assert "in user code" in str(error), "else TensorFlow no longer writes what is read here"
    assert where_and_what(error) == "blamed_traced.py:4: ValueError: no half of it"


def test_a_module_that_does_not_parse_is_placed(module):
    error = raised(module, "blamed_syntax", "x = 1\ndef f(:\n")
    assert where(error) == "blamed_syntax.py:2"
    assert what(error).startswith("SyntaxError: ")


def test_a_headline_brings_the_line_below_it():
    error = raised(nn.Linear(2, 3).load_state_dict, {"weight": torch.zeros(2, 2), "bias": torch.zeros(3)})
    assert what(error).startswith("RuntimeError: Error(s) in loading state_dict for Linear: size mismatch for weight")


def test_what_only_frameworks_raised_has_no_place():
    def build():
        keras.layers.Dense("x", kernel_regularizer="no such")

    error = raised(keras.layers.Dense, 1, kernel_regularizer="no such")
    assert where(error).startswith("tests"), "the test itself is the user here"
    error.__traceback__ = error.__traceback__.tb_next.tb_next
    assert where(error) == ""
    assert told("vit", "build_tf", error) == f"build_tf of vit failed: {what(error)}"
    assert where(raised(build)).startswith("tests")


def test_the_code_that_a_dataclass_generates_is_nobody_s(module):
    """Its file is "<string>", as that of `python -c` is."""
    mine = module("blamed_dataclass", "from converter.kinds.axes import Pattern\n\ndef f():\n    Pattern('a b')\n")
    assert where(raised(mine.f)) == "blamed_dataclass.py:4"
    error = raised(exec, compile("1 / 0", "<string>", "exec"))
    error.__traceback__ = error.__traceback__.tb_next
    assert where(error) == "<string>:1"


def test_where_a_function_begins(module):
    mine = module("blamed_begins", "import functools\n\ndef f():\n    pass\n\ng = functools.partial(f)\n")
    assert begins(mine.f) == "blamed_begins.py:3"
    assert [begins(one) for one in (mine.g, len, json.dumps, begins)] == [""] * 4


def test_the_line_is_found_through_what_a_framework_wrapped(module):
    mine = module("blamed_wrapped", "def f():\n    return {}['a']\n")
    inner = raised(mine.f)
    outer = ValueError("wrapped")
    outer.__cause__ = inner
    assert where_and_what(outer) == "blamed_wrapped.py:2: ValueError: wrapped"


@pytest.mark.parametrize("error", [ValueError(), KeyError("a\nb"), ValueError("\x1b[31m\n\u202e " + "x" * 10_000)])
def test_anything_is_one_short_printable_line(error):
    told_ = where_and_what(error)
    assert told_.startswith(type(error).__name__)
    assert told_.isprintable()
    assert len(told_) < 300


def test_an_exception_that_cannot_be_told_and_one_that_is_its_own_context():
    class Mute(Exception):
        def __str__(self):
            raise RuntimeError("no")

    assert what(Mute()) == "Mute"
    one, other = ValueError("a"), ValueError("b")
    one.__context__, other.__context__ = other, one
    assert where_and_what(one) == "ValueError: a"


def test_blaming_passes_what_is_meant_for_users_and_keeps_the_cause():
    for error in (ConversionError("a"), UsageError("b"), MemoryError(), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, blaming("vit", "configure"):
            raise error
        assert caught.value is error
    cause = AttributeError("nope")
    with pytest.raises(PairError) as caught, blaming("vit", "configure"):
        raise cause
    assert re.fullmatch(r"configure of vit failed at .*test_blame\.py:\d+: AttributeError: nope", str(caught.value))
    assert caught.value.__cause__ is cause
