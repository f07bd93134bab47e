"""Checkpoints of other libraries: other names, and other layouts of the same tensors."""

import json

import keras
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import cli
import converter
import tf_models
from converter import Dialect, Mapping, Pair, Probe, Row, kinds
from converter.kinds import CONV_2D, CONV_2D_HWIO, DENSE, DENSE_IN_OUT, Kind, leaf
from converter.kinds.axes import relaid, relaid_shape
from converter.pairs.mapping import join
from converter.pairs.registry import pairs
from tests.support.checkpoints import save
from tests.support.pairs import registered
from tf_models import layers
from tf_models.runtime.weights_format import provenance

FOREIGN_KINDS = [kind for kind in vars(kinds).values() if isinstance(kind, Kind) and kind.of is not None]
HANDMADE = Dialect(
    "handmade",
    (("w", "conv.weight"), ("b", "conv.bias"), ("fc.kernel", "head.weight"), ("fc.bias", "head.bias")),
    (("conv", CONV_2D_HWIO), ("head", DENSE_IN_OUT)),
)
PADDLE = Dialect("paddle", kinds=(("head", DENSE_IN_OUT),))


class Net(nn.Module):
    def __init__(self, width, classes):
        super().__init__()
        self.conv = nn.Conv2d(3, width, (2, 3))
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)))


class KerasNet(keras.Model):
    def __init__(self, width, classes):
        super().__init__()
        self.conv = layers.Conv2D(width, (2, 3))
        self.head = keras.layers.Dense(classes)
        self.conv.build((None, None, None, 3))
        self.head.build((None, width))
        self.built = True

    def call(self, x):
        return self.head(keras.ops.mean(self.conv(x), (1, 2)))


def configure(shapes, options):
    classes, width = shapes["head.weight"]
    if shapes["head.bias"] != (classes,):
        raise ValueError("the head's bias is as long as it has classes")
    return {"width": width, "classes": classes}


SPELLED = Pair(
    "spelled",
    lambda config: Mapping([Row("conv", CONV_2D), Row("head", DENSE)]),
    lambda config, rng: [Probe({"x": rng.standard_normal((4, 3, 6, 7), dtype=np.float32)})],
    build_tf=KerasNet,
    build_torch=Net,
    configure=configure,
    fallback={"width": 5, "classes": 7},
    channels_first=frozenset({"x"}),
    dialects=(HANDMADE, PADDLE),
)


@pytest.fixture(scope="module", autouse=True)
def _spelled():
    with registered(SPELLED):
        yield


def state(classes, width=5):
    torch.manual_seed(0)
    return Net(width, classes).state_dict()


def in_hand(official):
    """The tensors as the dialect `handmade` has them, written without the converter."""
    return {
        "w": official["conv.weight"].permute(2, 3, 1, 0).contiguous(),
        "b": official["conv.bias"].reshape(1, 1, 1, -1),
        "fc.kernel": official["head.weight"].T.contiguous(),
        "fc.bias": official["head.bias"],
    }


def in_paddle(official):
    return {**official, "head.weight": official["head.weight"].T.contiguous()}


def values(path):
    return [variable.numpy() for variable in tf_models.load(path).weights]


@pytest.mark.parametrize("classes", [7, 5])
@pytest.mark.parametrize(("name", "spell"), [("handmade", in_hand), ("paddle", in_paddle)])
def test_a_foreign_layout_gives_the_same_weights_and_both_proofs(classes, name, spell, tmp_path):
    official = state(classes)
    expected = converter.convert(
        "spelled",
        save(official, tmp_path),
        tmp_path / "a.weights.h5",
        verify="none",
        dialect="official" if classes == 5 else None,
    )
    assert expected.dialect == "official"
    dialect = "paddle" if name == "paddle" and classes == 5 else None  # 5 x 5: either way round
    level = "full" if classes == 5 else "lossless"
    checkpoint, output = save(spell(official), tmp_path, "b.pth"), tmp_path / "b.weights.h5"
    report = converter.convert("spelled", checkpoint, output, verify=level, dialect=dialect)
    assert (report.dialect, report.config) == (name, expected.config)
    assert report.lossless
    if level == "full":
        assert report.numerical
        assert [one.name for one in report.numerical.layers] == ["conv", "head"]
    for ours, theirs in zip(values(expected.output), values(report.output), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    again = converter.verify("spelled", checkpoint, output, level="lossless")
    assert again.dialect == name, "the file's own record tells the layout"


def test_a_layout_that_nothing_tells_must_be_chosen(tmp_path):
    checkpoint = save(state(5), tmp_path)
    told = "its names and shapes fit several layouts of spelled: official, paddle; choose one with --dialect"
    with pytest.raises(converter.ConversionError, match=told):
        converter.plan("spelled", checkpoint)
    assert converter.plan("spelled", checkpoint, dialect="paddle").to_dict()["dialect"] == "paddle"
    with pytest.raises(converter.UsageError, match="no dialect keras; it has: official, handmade, paddle"):
        converter.plan("spelled", checkpoint, dialect="keras")
    with pytest.raises(converter.UsageError, match="no model has a dialect keras"):
        converter.plan("auto", checkpoint, dialect="keras")


def test_the_wrong_choice_is_refused_where_shapes_tell(tmp_path):
    checkpoint = save(in_paddle(state(7)), tmp_path)
    with pytest.raises(converter.PlanError, match="bias is as long as"):
        converter.plan("spelled", checkpoint, dialect="official")
    with pytest.raises(converter.PlanError):
        converter.plan("spelled", save({**in_hand(state(7)), "w": torch.zeros(3)}, tmp_path, "flat.pth"))


def test_a_plan_names_the_layout(tmp_path):
    plan = converter.plan("spelled", save(in_hand(state(7)), tmp_path))
    assert {step["tensor"]: step["kind"] for step in plan.to_dict()["steps"]} == {
        "w": "CONV_2D_HWIO",
        "b": "CONV_2D_HWIO",
        "fc.kernel": "DENSE_IN_OUT",
        "fc.bias": "DENSE_IN_OUT",
    }
    assert "kh kw i o -> kh kw i o" in str(plan)


def test_the_command_takes_and_records_a_dialect(tmp_path):
    checkpoint, output = save(in_paddle(state(5)), tmp_path), tmp_path / "o.weights.h5"
    command = ["--model", "spelled", str(checkpoint), "-o", str(output), "--verify", "none"]
    assert "choose one with --dialect" in CliRunner().invoke(cli.convert, command).output
    done = CliRunner().invoke(cli.convert, [*command, "--spelling", "paddle"])
    assert done.exit_code == 0, done.output
    assert provenance(output)["dialect"] == "paddle"
    again = CliRunner().invoke(cli.convert, [*command, "--dialect", "paddle", "--overwrite"])
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize("kind", FOREIGN_KINDS, ids=repr)
def test_a_foreign_kind_and_torch_s_fill_a_variable_alike(kind):
    """By way of the Keras variable, as the plan goes, and straight, as the proof goes."""
    rng = np.random.default_rng(0)
    otherwise = dict(kind.relaid())
    torch_leaves = {one.torch: one for one in kind.of.leaves}
    assert otherwise, "it differs somewhere"
    for one in kind.leaves:
        ours = torch_leaves[one.torch]
        variable = rng.standard_normal(range(2, 2 + len(ours.pattern.sides[1].split())))
        [foreign], [canonical] = one.to_torch([variable]), ours.to_torch([variable])
        np.testing.assert_array_equal(one.to_keras([foreign], [variable.shape])[0], variable)
        axes = otherwise.get(one.torch[0])
        assert relaid_shape(foreign.shape, axes or "... -> ...") == canonical.shape
        np.testing.assert_array_equal(relaid(foreign, axes or "... -> ..."), canonical)
        assert axes is not None or foreign.shape == canonical.shape
    assert (kind.inputs, kind.results, kind.call, kind.callable_alone) == (
        kind.of.inputs,
        kind.of.results,
        kind.of.call,
        kind.of.callable_alone,
    )


GATES = Kind("GATES", (leaf("weight", "kernel", "(r + z) i -> i (z + r)", sizes={"r": 1, "z": 1}),))
PACKED = Kind("PACKED", (leaf("weight", ("a.kernel", "b.kernel"), "(a + b) i -> i a, i b"),))


def test_a_layout_of_blocks_and_one_of_several_variables():
    blocks = Kind("BLOCKS", (leaf("weight", "kernel", "i (r + z) -> i (z + r)"),), of=GATES)
    ((name, axes),) = blocks.relaid()
    x = np.arange(24.0).reshape(6, 4)
    assert name == "weight"
    np.testing.assert_array_equal(relaid(x, axes), x.T)
    several = Kind("SEVERAL", (leaf("weight", ("a.kernel", "b.kernel"), "i (a + b) -> i a, i b"),), of=PACKED)
    ((_, axes),) = several.relaid()
    np.testing.assert_array_equal(relaid(x, axes), x.T)


def test_a_layout_must_be_one_of_the_module_s_kind():
    with pytest.raises(ValueError, match="torch's own layout"):
        Dialect("d", kinds=(("a", DENSE),))
    with pytest.raises(ValueError, match="DENSE_IN_OUT is no layout of CONV_2D"):
        Dialect("d", kinds=(("a.{i}", DENSE_IN_OUT),)).kind("a.0", CONV_2D)
    with pytest.raises(ValueError, match="name the axes of kernel differently"):
        Dialect("d", kinds=(("a", Kind("K", (leaf("weight", "kernel", "a b -> a b"), kinds.BIAS), of=DENSE)),))
    with pytest.raises(ValueError, match="do not have the same tensors"):
        Dialect("d", kinds=(("a", Kind("K", (leaf("weight", "kernel", "i o -> i o"),), of=DENSE)),))
    assert Dialect("d", kinds=(("a.{i}", DENSE_IN_OUT),)).kind("b.0", CONV_2D) is CONV_2D


def test_names_and_axes_of_a_dialect():
    assert HANDMADE.canonical("fc.kernel") == "head.weight"
    assert HANDMADE.foreign("head.weight") == "fc.kernel"
    assert HANDMADE.axes("conv.weight") == "kh kw i o -> o i kh kw"
    assert HANDMADE.axes("conv.bias") == "1 1 1 o -> o"
    assert HANDMADE.axes("head.bias") is None
    with pytest.raises(ValueError, match="there is no name for 'w'"):
        HANDMADE.foreign("w")  # its own word for another tensor


def dialect_cases():
    return [(pair, dialect) for pair in pairs() for dialect in pair.dialects]


@pytest.mark.parametrize(("pair", "dialect"), dialect_cases(), ids=lambda one: one.name)
def test_every_name_of_every_pair_goes_there_and_back(pair, dialect):
    config = pair.fallback or {name: option.default for name, option in pair.options.items()}
    table = pair.mapping(config)
    names = [name for name, _ in table.tensors()] + list(table.ignored())
    foreign = [dialect.foreign(name) for name in names]
    assert [dialect.canonical(name) for name in foreign] == names
    assert len(set(foreign)) == len(names)
    for path, _, kind in table.modules():
        relaid = dialect.kind(path, kind)
        for one in relaid.leaves:
            axes = dict(relaid.relaid()).get(one.torch[0]) if relaid is not kind else None
            assert dialect.axes(join(path, one.torch[0])) == axes


def test_the_record_is_json(tmp_path):
    report = converter.convert("spelled", save(in_hand(state(7)), tmp_path), tmp_path / "a.weights.h5", verify="none")
    assert json.loads(json.dumps(report.to_dict()))["dialect"] == "handmade"
