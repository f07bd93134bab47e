"""What a match found, as a pair: converted, proven and brought back as any other."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import converter
import tf_models
from converter.matching.arguments import Arguments
from converter.matching.builders import Builder
from converter.matching.pairing import pair_of
from converter.matching.rows import Fill, Link
from tests.support.pairs import forgetting
from tests.support.seeded import seeded

DENSE = (Fill(("weight",), ("kernel",), "o i -> i o"), Fill(("bias",), ("bias",), "o -> o"))
NO_COUNT = {"norm.num_batches_tracked": "Keras keeps no count of batches"}


def proven(torch: str, keras: str, *fills: Fill, kind: str = "") -> Link:
    return Link(torch, keras, fills, "proven", "by construction", kind)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# A network of images: positional arguments, results by name against a list, and a bias that torch does not have.


def images_torch() -> Any:
    import torch

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3, padding=1, bias=False)
            self.norm = torch.nn.BatchNorm2d(4)
            self.head = torch.nn.Linear(4, 5)
            self.aside = torch.nn.Linear(4, 2)

        def forward(self, x: Any) -> dict[str, Any]:
            y = torch.relu(self.norm(self.conv(x)))
            return {"map": y, "logits": self.head(y.mean((2, 3))), "aside": self.aside(y.mean((2, 3)))}

    return Net()


def images_keras() -> Any:
    import keras

    image = keras.Input((6, 5, 3))
    x = keras.layers.Conv2D(4, 3, padding="same")(image)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization(epsilon=1e-5, momentum=0.9)(x))
    return keras.Model(image, [keras.layers.Dense(5)(keras.layers.GlobalAveragePooling2D()(x)), x])


IMAGES = [
    proven(
        "conv",
        "conv2d",
        Fill(("weight",), ("kernel",), "o i kh kw -> kh kw i o"),
        Fill((), ("bias",), "= 0"),
        kind="CONV_2D",
    ),
    proven(
        "norm",
        "batch_normalization",
        *(
            Fill((theirs,), (ours,), "c -> c")
            for theirs, ours in (
                ("weight", "gamma"),
                ("bias", "beta"),
                ("running_mean", "moving_mean"),
                ("running_var", "moving_variance"),
            )
        ),
        kind="BATCH_NORM",
    ),
    proven("head", "dense", *DENSE, kind="DENSE"),
]


def images_pair(links: list[Link] = IMAGES, left: dict[str, str] | None = None) -> converter.Pair:
    x = rng().standard_normal((2, 3, 6, 5))
    if left is None:
        left = {**NO_COUNT, "aside.weight": "Keras lacks the head", "aside.bias": "Keras lacks the head"}
    arguments = Arguments((x,), {}, (x.transpose(0, 2, 3, 1),))
    outputs = [("logits", "0", ""), ("map", "1", "n c h w -> n h w c")]
    return pair_of(
        "images", Builder(images_torch, "torch"), Builder(images_keras, "keras"), arguments, links, left, outputs
    )


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its checkpoint; beside it the converted file."""
    import torch

    folder = tmp_path_factory.mktemp("images")
    torch.save(seeded(images_torch(), 0).state_dict(), folder / "images.pth")
    with forgetting():
        report = converter.convert(images_pair(), folder / "images.pth", folder / "images.weights.h5", "train")
    assert report.numerical.full
    assert {one.name for one in report.numerical.layers} == {"conv", "norm", "head"}
    assert [one.name for one in report.numerical.outputs] == ["logits", "map"]
    assert report.constants == {"conv2d.bias": "0"}
    assert "conv2d.bias: 0" in dict(report.lines())["constant"]
    assert any("1 variables hold constants that torch does not have" in told for told in report.numerical.by_design)
    assert report.loading().endswith('images.weights.h5"), where model is what images_keras builds')
    converter.save_html(report, folder / "images.html")
    return folder / "images.pth"


def test_a_model_of_the_users_own_loads_the_file_and_computes_as_torch(images: Path):
    import torch

    model, network = images_keras(), images_torch().eval()
    model.load_weights(images.with_name("images.weights.h5"))
    network.load_state_dict(torch.load(images, weights_only=True))
    x = rng().standard_normal((2, 3, 6, 5)).astype(np.float32)
    with torch.no_grad():
        theirs = network(torch.from_numpy(x))["logits"].numpy()
    assert np.allclose(model(x.transpose(0, 2, 3, 1))[0], theirs, atol=1e-5)
    with pytest.raises(ValueError, match=r"not known here; .*own program takes the file with model.load_weights"):
        tf_models.load(images.with_name("images.weights.h5"))


def test_the_checkpoint_comes_back_with_the_same_bits(images: Path, tmp_path: Path):
    import torch

    with forgetting():
        report = converter.restore(images.with_name("images.weights.h5"), tmp_path / "back.pth", model=images_pair())
    before, back = torch.load(images, weights_only=True), torch.load(tmp_path / "back.pth", weights_only=True)
    assert list(before) == list(back)
    assert all(torch.equal(before[name], back[name]) for name in before)
    assert report.tensors == len(before)


def test_a_constant_that_training_changed_does_not_come_back_in_silence(images: Path, tmp_path: Path):
    model = images_keras()
    model.load_weights(images.with_name("images.weights.h5"))
    model.layers[1].bias.assign([0.0, 0.0, 1e-3, 0.0])
    model.save_weights(tmp_path / "trained.weights.h5")
    with forgetting(), pytest.raises(converter.ConversionError) as error:
        converter.restore(
            tmp_path / "trained.weights.h5",
            tmp_path / "back.pth",
            like=images.with_name("images.weights.h5"),
            model=images_pair(),
        )
    assert "conv2d.bias holds a constant (0) for which torch has no tensor" in str(error.value)
    assert not (tmp_path / "back.pth").exists()


def test_the_page_shows_a_constant_in_the_plan(images: Path):
    page = images.with_name("images.html").read_text()
    assert "The plan: 7 tensors" in page
    row = next(row for row in page.split("<tr") if "conv2d.bias" in row and "= 0" in row)
    assert "conv.weight" not in row


def test_another_pairs_file_is_refused(images: Path, tmp_path: Path):
    weights = images.with_name("images.weights.h5")
    with forgetting():
        for use in (
            lambda: converter.restore(weights, tmp_path / "back.pth", model=tokens_pair()),
            lambda: converter.verify(tokens_pair(), images, weights),
        ):
            with pytest.raises(converter.ConversionError, match=r"holds images, not tokens"):
                use()


def test_an_open_match_is_in_nobodys_way(images: Path):
    open_links = [*IMAGES[:2], replace(IMAGES[2], status="ambiguous")]
    whole = replace(images_pair(), name="whole")
    with forgetting():
        converter.register(images_pair(open_links))
        converter.register(whole)
        assert converter.plan(None, images).pair.name == "whole"


def test_verify_takes_a_pair_and_tells_of_a_constant_that_the_file_does_not_hold(images: Path, tmp_path: Path):
    model = images_keras()
    model.load_weights(images.with_name("images.weights.h5"))
    model.save_weights(tmp_path / "own.weights.h5")
    with forgetting():
        assert converter.verify(images_pair(), images, tmp_path / "own.weights.h5", level="lossless")
        model.layers[1].bias.assign([0.0, 0.0, 1e-3, 0.0])
        model.save_weights(tmp_path / "own.weights.h5")
        report = converter.verify(images_pair(), images, tmp_path / "own.weights.h5", level="lossless")
    assert report.failure() == "lossless: 1 tensors differ in the file: conv2d.bias"


def test_export_takes_the_inputs_and_outputs_of_a_pair(images: Path, tmp_path: Path):
    import tensorflow as tf

    with forgetting():
        report = converter.export(images.with_name("images.weights.h5"), tmp_path / "saved", model=images_pair())
        with pytest.raises(converter.ConversionError, match="holds images, not tokens"):
            converter.export(images.with_name("images.weights.h5"), tmp_path / "other", model=tokens_pair())
    assert all(one.differences for one in report.parts)
    x = rng().standard_normal((3, 6, 5, 3)).astype(np.float32)
    exported = tf.saved_model.load(str(tmp_path / "saved" / "1")).signatures["call"](input_0=tf.constant(x))
    model = images_keras()
    model.load_weights(images.with_name("images.weights.h5"))
    assert sorted(exported) == ["logits", "map"]
    assert np.allclose(exported["logits"], model(x)[0], atol=1e-6)


def test_the_plan_shows_constants_as_text_and_as_json(images: Path):
    with forgetting():
        plan = converter.plan(images_pair(), images)
    line = next(line for line in str(plan).split("\n") if "conv2d.bias" in line)
    assert line.split() == ["conv2d.bias", "(4,)", "=", "0"]
    assert json.loads(json.dumps(plan.to_dict()))["constants"] == {"conv2d.bias": "0"}
    assert plan.dropped["aside.weight"] == "Keras lacks the head"


def test_a_wrong_link_is_refused_by_the_proof(images: Path, tmp_path: Path):
    fills = (*IMAGES[0].fills[:1], replace(IMAGES[0].fills[1], axes="= 0.5"))
    links = [replace(IMAGES[0], fills=fills), *IMAGES[1:]]
    with forgetting(), pytest.raises(converter.ProofError, match=r"first layer that differs: conv"):
        converter.convert(images_pair(links), images, tmp_path / "o.weights.h5")
    assert not (tmp_path / "o.weights.h5").exists()


def test_rows_that_are_not_proven_are_refused_until_a_person_takes_them(images: Path, tmp_path: Path):
    open_links = [*IMAGES[:2], replace(IMAGES[2], status="proposed")]
    for use in (
        lambda pair: converter.convert(pair, images, tmp_path / "o.weights.h5"),
        lambda pair: converter.plan(pair, images),
        lambda pair: converter.verify(pair, images, images.with_name("images.weights.h5")),
    ):
        with forgetting(), pytest.raises(converter.ConversionError) as error:
            use(images_pair(open_links))
        assert "the match images is open: 1 of its rows are not proven (dense)" in str(error.value)
        assert "--accept ROW, or `accepted = true` in the plan" in str(error.value)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "o.weights.h5").exists()
    taken = [*IMAGES[:2], replace(IMAGES[2], status="proposed", accepted=True)]
    with forgetting():
        assert converter.convert(images_pair(taken), images, tmp_path / "o.weights.h5", "lossless")


def test_tensors_that_are_left_without_a_reason_are_refused(images: Path):
    left = {**NO_COUNT, "aside.weight": "", "aside.bias": ""}
    with forgetting(), pytest.raises(converter.ConversionError) as error:
        converter.plan(images_pair(left=left), images)
    assert "2 tensors of torch's fill nothing, and no reason is known (aside.weight, aside.bias)" in str(error.value)


def test_an_output_that_a_side_does_not_return_is_named(images: Path, tmp_path: Path):
    pair = images_pair()
    [probe] = pair.probes({}, rng())
    wrong = replace(pair, probes=lambda config, rng: [replace(probe, outputs=(("boxes", "0", ""),))])
    with forgetting(), pytest.raises(converter.ConversionError, match="torch returns no 'boxes'; it has map, logits"):
        converter.convert(wrong, images, tmp_path / "o.weights.h5")


# A subclassed model of tokens: a dict against named arguments, a dataclass of results, packed against split tensors,
# a tied copy, and a table that the builder computes.


@dataclass
class Result:
    last: Any
    cache: Any = None


class Cache:
    """What a network returns beside arrays, and another process does not know."""


def tokens_torch() -> Any:
    import torch

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(11, 6)
            self.qkv = torch.nn.Linear(6, 12)
            self.out = torch.nn.Linear(6, 11, bias=False)
            self.out.weight = self.embed.weight
            self.register_buffer("ids", torch.arange(7))

        def forward(self, ids: Any, scale: Any = None) -> Result:
            x = self.embed(ids) * scale[:, None, None] + self.ids[: ids.shape[1], None] / 7
            q, k, v = self.qkv(x).split(4, -1)
            mixed = torch.sigmoid(q @ k.mT) @ v
            return Result(self.out(torch.nn.functional.pad(mixed, (0, 2)) + x), Cache())

    return Net()


def tokens_keras() -> Any:
    import keras

    class Net(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.embed = keras.layers.Embedding(11, 6)
            self.q, self.k, self.v = (keras.layers.Dense(4) for _ in range(3))
            self.table = self.add_weight(shape=(7, 1), trainable=False, name="table")
            self.table.assign(np.arange(7, dtype=np.float32)[:, None] / 7)
            self.bound = keras.Variable(np.full(3, 2.0, np.float32), trainable=False)

        def call(self, given: dict[str, Any]) -> dict[str, Any]:
            x = self.embed(given["tokens"]) * given["scale"][:, None, None]
            x = x + self.table[: x.shape[1]] * (self.bound[0] - 1.0)
            q, k, v = self.q(x), self.k(x), self.v(x)
            mixed = keras.ops.sigmoid(q @ keras.ops.swapaxes(k, -1, -2)) @ v
            mixed = keras.ops.pad(mixed, ((0, 0), (0, 0), (0, 2)))
            return {"logits": (mixed + x) @ keras.ops.transpose(self.embed.embeddings)}

    model = Net()
    model({"tokens": np.zeros((1, 2), np.int32), "scale": np.ones(1, np.float32)})
    return model


def tokens_pair(left: dict[str, str] | None = None) -> converter.Pair:
    ids, scale = rng().integers(0, 11, (2, 5)), rng().uniform(0.5, 1.5, 2)
    links = [
        proven("embed", "embed", Fill(("weight",), ("embeddings",), "n c -> n c"), kind="EMBEDDING"),
        proven(
            "qkv",
            "",
            Fill(("weight",), ("q.kernel", "k.kernel", "v.kernel"), "(q + k + v) i -> i q, i k, i v"),
            Fill(("bias",), ("q.bias", "k.bias", "v.bias"), "(q + k + v) -> q, k, v"),
        ),
        proven("", "", Fill((), ("table", "bound"), "= built")),
    ]
    usual = {"out.weight": "a copy of embed.weight", "ids": "Keras computes it"}
    return pair_of(
        "tokens",
        Builder(tokens_torch, "torch"),
        Builder(tokens_keras, "keras"),
        Arguments((ids,), {"scale": scale}, ({"tokens": ids, "scale": scale},)),
        links,
        usual if left is None else left,
        [("last", "logits", "")],
    )


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    path = tmp_path_factory.mktemp("tokens") / "tokens.pth"
    torch.save(seeded(tokens_torch(), 0).state_dict(), path)
    return path


def test_tokens_into_a_subclassed_model_and_back_to_the_same_bits(tokens: Path, tmp_path: Path):
    import torch

    with forgetting():
        report = converter.convert(tokens_pair(), tokens, tmp_path / "o.weights.h5")
        assert report.numerical.full
        assert [one.name for one in report.numerical.outputs] == ["last"]
        assert report.constants == {"table": "built", "bound": "built"}
        assert report.lossless.equal == ("out.weight",)
        converter.restore(tmp_path / "o.weights.h5", tmp_path / "back.pth")
    before, back = torch.load(tokens, weights_only=True), torch.load(tmp_path / "back.pth", weights_only=True)
    assert list(before) == list(back)
    assert all(torch.equal(before[name], back[name]) for name in before)


def test_a_copy_that_is_none_is_refused(tokens: Path, tmp_path: Path):
    import torch

    state = torch.load(tokens, weights_only=True)
    state["out.weight"] = state["out.weight"] + 1
    torch.save(state, tmp_path / "untied.pth")
    with forgetting(), pytest.raises(converter.ConversionError, match=r"out.weight is dropped, but does not equal"):
        converter.convert(tokens_pair(), tmp_path / "untied.pth", tmp_path / "o.weights.h5", "lossless")


def test_a_builder_that_fails_is_told_with_its_own_error(images: Path, tmp_path: Path):
    def broken() -> Any:
        raise KeyError("gone")

    whole = images_pair()
    for pair, told in (
        (replace(whole, build_torch=Builder(broken, "--torch")), r"--torch .*broken failed: .*KeyError: 'gone'"),
        (replace(whole, build_tf=Builder(broken, "--keras")), r"--keras .*broken failed: .*KeyError: 'gone'"),
    ):
        with forgetting(), pytest.raises(converter.ConversionError, match=told):
            converter.convert(pair, images, tmp_path / "o.weights.h5")


def test_links_of_many_units_and_tensors_that_several_units_share():
    shared = Link("a.{0-1}", "x.{1,2}", DENSE, "proven", "", "DENSE")
    links = [shared, replace(shared, keras="y.{1,2}"), replace(shared, keras="z.{1,2}")]
    pair = pair_of("p", Builder(dict, "torch"), Builder(dict, "keras"), Arguments(), links, {}, [])
    found = [
        (path, kind.name, [name if where == "" else f"{where}.{name}" for part in kind.leaves for name in part.keras])
        for path, where, kind in pair.mapping({}).modules()
    ]
    assert found == [
        ("a.0", "DENSE", ["x.1.kernel", "x.1.bias"]),
        ("a.1", "DENSE", ["x.2.kernel", "x.2.bias"]),
        ("a.0", "MATCHED", ["y.1.kernel", "y.1.bias", "z.1.kernel", "z.1.bias"]),
        ("a.1", "MATCHED", ["y.2.kernel", "y.2.bias", "z.2.kernel", "z.2.bias"]),
    ]
    assert pair.tensors == 4


@pytest.mark.parametrize(
    ("link", "told"),
    [
        (proven("a", "b", *DENSE, kind="GONE"), "'GONE' is no kind of converter.kinds"),
        (proven("", "b", Fill((), ("bias",), "= none")), "b.bias: a constant is a number, as `= 0`, or `= built`, not"),
        (proven("a", "b", Fill(("w",), ("v",), "o i -> o")), "do not hold the same axes"),
        (proven("a.{0-1}", "b", *DENSE), "names 2 units"),
    ],
)
def test_links_that_say_nothing_are_refused(link: Link, told: str):
    with pytest.raises(ValueError, match=told):
        pair_of("p", Builder(dict, "torch"), Builder(dict, "keras"), Arguments(), [link], {}, [])


def test_arguments_are_of_the_dtypes_that_each_side_takes():
    given = Arguments((np.zeros(2, np.int32), [np.zeros(2)]), {"m": np.ones(2, bool)}, (np.zeros(2, np.int64),))
    assert given.torch[0].dtype == np.int64
    assert given.torch[1][0].dtype == np.float32
    assert given.torch_named["m"].dtype == bool
    assert given.keras[0].dtype == np.int32
    assert [*given.inputs] == ["0", "1", "m"]
