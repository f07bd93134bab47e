"""Weights that were trained in TensorFlow go back to torch: by `tf_models.save`, or from what Keras saved, `--like`."""

import json

import keras
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import cli
import converter
import tf_models
import torch_refs
from converter import Drop, Row, kinds
from converter.planning.origin import Origin
from tests.support import networks
from tests.support.pairs import registered
from tests.support.sam_sides import photographs, save_small, small_sides, steep
from tests.support.small_sam import DECODER
from tf_models.runtime.weights_format import provenance

WIDTHS = 6, 8


def torchs():
    """With statistics and a count of batches, a normalised kernel, and a layer of two names, declared out of order."""
    inputs, width = WIDTHS
    made = networks.net(
        lambda self, x: self.last(self.normed(self.bn(self.first(x)))),
        last=nn.Linear(width, inputs),
        bn=nn.BatchNorm1d(width),
        first=nn.Linear(inputs, width),
        normed=weight_norm(nn.Linear(width, width)),
        again=nn.Linear(width, inputs),
    )
    made.again.weight, made.again.bias = made.last.weight, made.last.bias
    return made


class Trainable(networks.Model):
    """Keras tells the layers of a model that they train where its own call takes the word."""

    def call(self, x, training=None):
        return super().call(x)


def kerases():
    inputs, width = WIDTHS
    return Trainable(
        lambda self, x: self.last(self.normed(self.bn(self.first(x)))),
        first=networks.dense(width, inputs),
        bn=(keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5), (None, width)),
        normed=networks.dense(width, width),
        last=networks.dense(inputs, width),
    )


SMALL = networks.pair(
    kerases,
    torchs,
    [
        Row("{first,normed,last}", kinds.DENSE),
        Row("bn", kinds.BATCH_NORM),
        Drop("again.weight", "shared", equals="last.weight"),
        Drop("again.bias", "shared", equals="last.bias"),
    ],
    networks.normal(5, 6),
)


def fitted(model):
    x = np.random.default_rng(0).standard_normal((16, 6), dtype=np.float32)
    model.compile(keras.optimizers.Adam(0.01), "mse", run_eagerly=True)  # to trace it takes longer
    model.fit(x, x[:, ::-1], epochs=3, verbose=0)
    return model


@pytest.fixture(scope="module", autouse=True)
def _small():
    with registered(SMALL):
        yield


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """The folder with the checkpoint, its converted file, and the weights after training, as both sides save them."""
    folder = tmp_path_factory.mktemp("tuned")
    state = networks.state_of(SMALL)
    state["bn.num_batches_tracked"] = torch.tensor(70_000_000_000)
    original = networks.converted(SMALL, state, folder, verify="lossless").output
    model = fitted(tf_models.load(original))
    tf_models.save(model, folder / "tuned.weights.h5")
    model.save_weights(folder / "plain.weights.h5")
    converter.restore(folder / "tuned.weights.h5", folder / "tuned.pth")
    return folder


def call(*words):
    return CliRunner().invoke(cli.main, [str(word) for word in words])


def test_torch_loads_it_strictly_with_all_that_it_had(tuned):
    state, back = torch.load(tuned / "ckpt.pth", weights_only=True), torch.load(tuned / "tuned.pth", weights_only=True)
    assert list(back) == list(state), "in the order of the checkpoint"
    assert list(back) == list(torchs().state_dict())
    for name, tensor in back.items():
        assert (tensor.dtype, tensor.shape) == (state[name].dtype, state[name].shape), name
        assert torch.equal(tensor, state[name]) == (name == "bn.num_batches_tracked"), name
    assert back["bn.num_batches_tracked"] == 70_000_000_000
    assert torch.equal(back["again.weight"], back["last.weight"])
    assert torch.equal(back["again.bias"], back["last.bias"])
    torchs().load_state_dict(back, strict=True)


def test_torch_then_computes_what_tensorflow_trained(tuned):
    """The proof of a conversion, of the way back: `verify` holds the trained file against what was restored of it."""
    report = converter.verify("small", tuned / "tuned.pth", tuned / "tuned.weights.h5")
    assert report.lossless
    assert report.numerical.full, str(report)
    assert ("trained", "after the conversion") in report.lines()


def test_the_report_says_that_the_values_are_new(tuned, tmp_path):
    report = converter.restore(tuned / "tuned.weights.h5", tmp_path / "t.pth")
    assert ("trained", "after the conversion, so the values are new") in report.lines()
    assert report.to_dict()["trained"] == "after the conversion"
    assert [note.partition(":")[0] for note in report.notes] == ["folded"]
    untrained = converter.restore(tuned / "out.weights.h5", tmp_path / "u.pth")
    assert "trained" not in dict(untrained.lines())


def test_what_keras_saved_is_restored_like_its_original(tuned, tmp_path):
    done = call("restore", "--like", tuned / "out.weights.h5", tuned / "plain.weights.h5", "-o", tmp_path / "t.pth")
    assert done.exit_code == 0, done.output
    assert "trained   after the conversion" in done.output
    assert f"source    {tuned / 'plain.weights.h5'}, dialect official" in done.output
    assert (tmp_path / "t.pth").read_bytes() == (tuned / "tuned.pth").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["t.pth"]


def test_without_a_word_where_it_is_from_every_command_names_the_way(tuned, tmp_path):
    plain = tuned / "plain.weights.h5"
    for command in (
        ["restore", plain, "-o", tmp_path / "t.pth"],
        ["export", plain, "--format", "saved_model", "-o", tmp_path / "s"],
        ["segment", plain, save_picture(tmp_path), "--point", "3,3", "--json"],
    ):
        done = call(*command)
        assert (done.exit_code, done.output.count("\n")) == (1, 1)
        assert "carries no provenance" in done.output
        assert "--like ORIGINAL" in done.output
        assert "tf_models.save(model, path)" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["p.png"]


def save_picture(folder):
    Image.fromarray(photographs()["small"]).save(folder / "p.png")
    return folder / "p.png"


def test_a_wrong_original_is_refused_and_leaves_nothing(tuned, tmp_path):
    wrong = tf_models.save(tf_models.create("dcn_v2", in_channels=6, out_channels=4), tmp_path / "dcn.weights.h5")
    done = call("restore", "--like", wrong, tuned / "plain.weights.h5", "-o", tmp_path / "t.pth")
    assert (done.exit_code, done.output.count("\n")) == (1, 1)
    assert "does not hold the variables of dcn_v2: it lacks conv_offset_mask/vars/0" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["dcn.weights.h5"]
    with pytest.raises(converter.ConversionError, match="is the file that is read; name another"):
        converter.restore(tuned / "plain.weights.h5", tuned / "ckpt.pth", overwrite=True, like=tuned / "ckpt.pth")


def test_verify_says_that_the_weights_are_trained(tuned):
    done = call("verify", tuned / "ckpt.pth", tuned / "tuned.weights.h5")
    assert done.exit_code == 1
    assert "trained   after the conversion" in done.output
    assert "layers" not in done.output, "no layer is accused of what training did"
    last = done.output.splitlines()[-1]
    assert (
        "the proof failed: the weights were trained after the conversion: 10 of 11 tensors are no longer this" in last
    )
    assert "verify them against what `weightbridge restore` makes of them" in last


def test_inspect_says_that_no_proof_holds(tuned):
    lines = call("inspect", tuned / "tuned.weights.h5").output.splitlines()
    assert "proof          level none, for the weights were trained since; level lossless before" in lines
    assert "trained        after the conversion" in lines
    assert "source         ckpt.pth" in lines


@pytest.mark.parametrize("how", ["saved", "like"])
def test_trained_weights_are_exported(tuned, how, tmp_path):
    where = (
        [tuned / "tuned.weights.h5"]
        if how == "saved"
        else [tuned / "plain.weights.h5", "--like", tuned / "out.weights.h5"]
    )
    done = call("export", *where, "--format", "saved_model", "-o", tmp_path / "s")
    assert done.exit_code == 0, done.output
    assert "trained   after the conversion" in done.output
    assert json.loads((tmp_path / "s" / "export.json").read_text())["trained"] == "after the conversion"
    import tensorflow as tf

    x = np.random.default_rng(5).standard_normal((3, 6), dtype=np.float32)
    served = tf.saved_model.load(str(tmp_path / "s" / "1")).signatures["call"](x=tf.constant(x))
    [result] = served.values()
    np.testing.assert_array_equal(
        np.asarray(result), np.asarray(tf.function(tf_models.load(tuned / "tuned.weights.h5"))(x))
    )


def test_a_trained_sam_segments(tmp_path):
    original = tmp_path / "sam.weights.h5"
    save_small(steep(small_sides().torch), original)
    model = tf_models.load(original)
    table = model.mask_decoder.iou_token.embeddings
    table.assign_add(np.ones(table.shape))
    tf_models.save(model, tmp_path / "tuned.weights.h5")
    model.save_weights(tmp_path / "plain.weights.h5")
    asked = save_picture(tmp_path), "--point", "9,7", "--json"
    found = [
        call("segment", *words, *asked)
        for words in ([tmp_path / "tuned.weights.h5"], [tmp_path / "plain.weights.h5", "--like", original])
    ]
    assert [done.exit_code for done in found] == [0, 0]
    assert found[0].output == found[1].output
    assert json.loads(found[0].output)["masks"]


def test_half_precision_is_rounded_to_with_a_note_or_refused_by_name(tmp_path):
    state = networks.state_of(SMALL)
    halves = {"first.weight": torch.float16, "bn.weight": torch.bfloat16, "bn.running_mean": torch.float16}
    state |= {name: state[name].to(dtype) for name, dtype in halves.items()}
    model = fitted(tf_models.load(networks.converted(SMALL, state, tmp_path, verify="lossless").output))
    trained = tmp_path / "tuned.weights.h5"
    report = converter.restore(tf_models.save(model, trained), tmp_path / "t.pth")
    assert (
        report.notes[0]
        == "3 tensors are of half precision in the checkpoint, to which their trained values are rounded"
    )
    back = torch.load(tmp_path / "t.pth", weights_only=True)
    for name, tensor in state.items():
        assert back[name].dtype == tensor.dtype, name
    kernel = torch.from_numpy(np.array(model.first.kernel)).T
    assert torch.equal(back["first.weight"], kernel.half())
    assert not torch.equal(back["first.weight"].float(), kernel)
    assert torch.equal(back["bn.weight"], torch.from_numpy(np.array(model.bn.gamma)).bfloat16())
    model.bn.moving_mean.assign(np.full(8, 1e6))
    tf_models.save(model, trained, overwrite=True)
    with pytest.raises(converter.ConversionError, match=r"bn\.running_mean holds values too large for float16"):
        converter.restore(trained, tmp_path / "no.pth")
    assert not (tmp_path / "no.pth").exists()


def test_variables_that_are_one_tensor_in_torch_must_be_equal(tmp_path):
    """The Keras model has a table and a kernel where torch has one parameter: training moves them apart."""

    def torch_net():
        made = networks.net(lambda self, x: self.head(self.embed(x)), embed=nn.Embedding(7, 5), head=nn.Linear(5, 7))
        made.head.weight = made.embed.weight
        return made

    def keras_net():
        layers = {"embed": (keras.layers.Embedding(7, 5), (None,)), "head": networks.dense(7, 5)}
        return networks.Model(lambda self, x: self.head(self.embed(x)), **layers)

    one = networks.pair(
        keras_net,
        torch_net,
        [Row("embed", kinds.EMBEDDING), Row("head", kinds.DENSE)],
        lambda config, rng: [converter.Probe({"x": rng.integers(0, 7, (2, 3))})],
    )
    with registered(one):
        original = networks.converted(one, torch_net().state_dict(), tmp_path, verify="lossless").output
        model = tf_models.load(original)
        trained = tmp_path / "tuned.weights.h5"
        model.head.kernel.assign_add(np.full((5, 7), 0.5))
        tf_models.save(model, trained)
        told = "embed.weight and head.weight are one tensor in torch, and training parted them; .* (Row's `tied`"
        with pytest.raises(converter.ConversionError, match=told.replace("(", r"\(")):
            converter.restore(trained, tmp_path / "t.pth")
        assert not (tmp_path / "t.pth").exists()
        model.embed.embeddings.assign(np.asarray(model.head.kernel).T)
        tf_models.save(model, trained, overwrite=True)
        converter.restore(trained, tmp_path / "t.pth")
    torch_net().load_state_dict(torch.load(tmp_path / "t.pth", weights_only=True), strict=True)


def test_a_created_model_becomes_a_state_dict_of_the_reference(tmp_path):
    """With the sizes that are usual where `create` was given none; what it lacks, torch has by itself."""
    model = fitted(tf_models.create("small"))
    tf_models.save(model, tmp_path / "small.weights.h5")
    report = converter.restore(tmp_path / "small.weights.h5", tmp_path / "small.pth")
    assert ("trained", "from fresh weights, so the values are new") in report.lines()
    assert report.notes == [
        "1 tensors that the model does not need do not come back, because the model was created and not converted: "
        "bn.num_batches_tracked"
    ]
    plain = torchs()
    plain.normed = nn.Linear(8, 8)
    back = torch.load(tmp_path / "small.pth", weights_only=True)
    plain.load_state_dict(back, strict=True)
    assert torch.equal(back["again.weight"], torch.from_numpy(np.array(model.last.kernel)).T)
    sizes = {name: value for name, value in DECODER.items() if name not in ("depth", "num_heads")}
    decoder = tf_models.save(tf_models.create("sam_decoder", **sizes, num_heads=4), tmp_path / "decoder.weights.h5")
    converter.restore(decoder, tmp_path / "decoder.safetensors", "hugging_face")
    converter.restore(decoder, tmp_path / "decoder.pth")
    reference = torch_refs.create("sam_decoder", **DECODER)
    reference.load_state_dict(torch.load(tmp_path / "decoder.pth", weights_only=True), strict=True)
    assert converter.verify("sam_decoder", tmp_path / "decoder.pth", decoder, level="lossless")


def test_the_order_of_a_checkpoint_is_remembered_within_the_record():
    origin = Origin(order=[2, 0, 1], lost=["b"])
    assert Origin.from_dict(json.loads(json.dumps(origin.to_dict(0)))) == origin
    assert origin.ordered(["c", "a"]) == ["c", "a"]
    assert origin.ordered(["a", "c"]) == ["c", "a"], "b is lost"
    assert origin.ordered(["a", "c", "d"]) == ["a", "c", "d"], "of others nothing is known"
    assert Origin(order=[*range(20_000)]).to_dict(0) == {"unrecorded": ["order"]}
    for order in ([0, 2], [0, 0], [1], ["0", "a"], [[]], [True]):
        with pytest.raises(converter.ConversionError, match="not as the converter writes it"):
            Origin.from_dict({"order": order})
    with pytest.raises(converter.ConversionError, match="not as the converter writes it"):
        Origin.from_dict({"shared": {"a": 1}})


def test_what_a_checkpoint_shares_is_recorded(tuned):
    record = provenance(tuned / "out.weights.h5")["origin"]
    assert record["ties"] == ["again.weight", "again.bias"]
    assert "shared" not in record, "the mapping has these"
