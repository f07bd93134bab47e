"""Models after training: saved with what is known of them, or read from what Keras saved, or refused by name."""

import os
import zipfile

import h5py
import keras
import numpy as np
import pytest

import converter
import tf_models
from tests.support import converted
from tests.support.converted import PAIR
from tests.support.pairs import registered
from tf_models.runtime.saving import known_like
from tf_models.runtime.weights_format import datasets, provenance

PLAIN = "plain.weights.h5"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A converted file, proven losslessly."""
    with registered(PAIR):
        yield converted.convert(tmp_path_factory.mktemp("original"))


def fitted(model, optimizer="adam"):
    x = np.random.default_rng(0).standard_normal((8, 6), dtype=np.float32)
    model.compile(optimizer, "mse", metrics=["mae"], run_eagerly=True)  # to trace it takes longer
    model.fit(x, x[:, : model.output_shape[-1] if hasattr(model, "output_shape") else 6], epochs=2, verbose=0)
    return model


def stored(path):
    with h5py.File(path) as file:
        return {place: dataset[()] for place, dataset in datasets(file)}


def assert_same(model, other):
    assert len(model.weights) == len(other.weights)
    for one, another in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(another))


def refused(match, function, *args, **more):
    """One printable line."""
    with pytest.raises(tf_models.WeightsError, match=match) as caught:
        function(*args, **more)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) <= 480
    return caught.value


def outer(model):
    """A larger model for training, with this one inside."""
    x = keras.Input((6,))
    return keras.Model(x, keras.layers.Dense(6)(model(keras.layers.Dropout(0.1)(x))))


def test_a_fitted_model_is_saved_with_its_ancestry_and_without_its_proof(original, tmp_path):
    model = tf_models.load(original)
    before = stored(original)
    path = tf_models.save(fitted(model), tmp_path / "new" / "tuned.weights.h5")
    assert os.listdir(path.parent) == ["tuned.weights.h5"]
    assert_same(tf_models.load(path), model)
    held = stored(path)
    assert held.keys() == before.keys(), "the optimizer's state stays out"
    assert all((held[place] != before[place]).any() for place in before)
    about, ancestor = provenance(path), provenance(original)
    assert about["trained"] == "after the conversion"
    assert about["proof"] == {"level": "none", "lossless": False, "before": "lossless"}
    for name in ("model", "config", "source", "source_sha256", "dialect", "origin", "dtype"):
        assert about[name] == ancestor[name], name
    assert "trained" not in ancestor


def test_what_was_proven_before_is_not_claimed(original, tmp_path):
    path = tf_models.save(tf_models.load(original), tmp_path / "tuned.weights.h5")
    told = (
        "holds weights that were trained after the conversion, and proven to the level lossless before; no proof holds"
    )
    refused(told, tf_models.load, path, require="lossless")
    tf_models.save(tf_models.load(path), path, overwrite=True)
    refused(told, tf_models.load, path, require="full")  # a second training forgets nothing
    model = tf_models.load(original)
    model.save_weights(tmp_path / PLAIN)
    refused(told, tf_models.load, tmp_path / PLAIN, require="lossless", like=original)


def test_a_half_precision_file_is_trained_in_float32(tmp_path):
    with registered(PAIR):
        half = converted.convert(tmp_path, 3, "float16")
        model = fitted(tf_models.load(half))
        path = tf_models.save(model, tmp_path / "tuned.weights.h5")
        assert (provenance(half)["dtype"], provenance(path)["dtype"]) == ("float16", "float32")
        assert_same(tf_models.load(path), model)


@pytest.mark.parametrize("policy", ["mixed_float16", "float16", "bfloat16"])
def test_other_policies(original, policy, tmp_path):
    """Mixed ones keep float32 variables; half ones are widened, which loses nothing."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = tf_models.load(original)
        path = tf_models.save(model, tmp_path / "tuned.weights.h5")
        model.save_weights(tmp_path / PLAIN)
    finally:
        keras.config.set_dtype_policy(before)
    wanted = [np.asarray(variable).astype(np.float32) for variable in model.weights]
    for found in (tf_models.load(path), tf_models.load(tmp_path / PLAIN, like=original)):
        for variable, values in zip(found.weights, wanted, strict=True):
            np.testing.assert_array_equal(np.asarray(variable), values)


def test_float64_is_refused(original, tmp_path):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    try:
        model = tf_models.load(original)
    finally:
        keras.config.set_dtype_policy(before)
    refused("dense/dense/vars/0 has dtype float64; what can be read are float32, float16, bfloat16",
            tf_models.save, model, tmp_path / "tuned.weights.h5")  # fmt: skip
    assert os.listdir(tmp_path) == []


def test_a_model_inside_another_is_saved_by_itself(original, tmp_path):
    model = tf_models.load(original)
    trainer = fitted(outer(model))
    path = tf_models.save(model, tmp_path / "tuned.weights.h5")
    assert_same(tf_models.load(path), model)
    told = rf"what was is inside it, save that: {model.name} \(stack\)"
    refused(told, tf_models.save, trainer, tmp_path / "no.weights.h5")


def test_adapters_are_merged(original, tmp_path):
    """Keras saves a kernel with its adapter added, so the file holds what the model computes."""
    model = tf_models.load(original)
    x = np.random.default_rng(1).standard_normal((4, 6), dtype=np.float32)
    for layer in model.dense:
        layer.enable_lora(2)
    fitted(model)
    path = tf_models.save(model, tmp_path / "tuned.weights.h5")
    found = tf_models.load(path)
    assert len(found.weights) == 8
    merged = [np.asarray(layer.kernel) for layer in model.dense]
    for layer, kernel in zip(found.dense, merged, strict=True):
        np.testing.assert_array_equal(np.asarray(layer.kernel), kernel)
    assert found(x).shape == (4, 6)


def test_a_clone_is_another_model(original, tmp_path):
    told = "neither from tf_models.load nor from tf_models.create, .* by set_weights, and save that"
    with registered(
        converter.Pair(
            "plain",
            lambda config: converter.Mapping([]),
            lambda config, rng: [],
            build_tf=lambda: keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)]),
        )
    ):
        model = tf_models.create("plain")
        clone = keras.models.clone_model(model)
        refused(told, tf_models.save, clone, tmp_path / "clone.weights.h5")
        model.set_weights(clone.get_weights())
        assert_same(tf_models.load(tf_models.save(model, tmp_path / "tuned.weights.h5")), clone)
    for other in (converted.build_tf(), 3, None, [], keras.layers.Dense(3)):
        refused(told, tf_models.save, other, tmp_path / "other.weights.h5")
    assert not (tmp_path / "other.weights.h5").exists()


def test_a_created_model_says_so(tmp_path):
    with registered(PAIR):
        model = fitted(tf_models.create("stack", depth=1))
        path = tf_models.save(model, tmp_path / "w.weights.h5")
        about = provenance(path)
        assert (about["trained"], about["config"]) == ("from fresh weights", {"depth": 1})
        assert "source" not in about
        assert_same(tf_models.load(path), model)
        refused("trained from fresh weights, and proven to the level none", tf_models.load, path, require="lossless")
        odd = tf_models.create("stack", more=lambda: keras.layers.Dense(2))
        refused("stack was created with more=<function .*, which a file cannot record",
                tf_models.save, odd, tmp_path / "odd.weights.h5")  # fmt: skip
    ours = tf_models.create("ms_deform_attn", d_model=24, n_heads=3, n_levels=2, dtype="mixed_float16")
    tf_models.save(ours, tmp_path / "ours.weights.h5")
    assert provenance(tmp_path / "ours.weights.h5")["config"] == {"d_model": 24, "n_heads": 3, "n_levels": 2}


def test_a_model_that_was_changed_is_refused_by_name(original, tmp_path):
    path = tmp_path / "tuned.weights.h5"
    model = tf_models.load(original)
    model._tracker.unlock()  # Keras itself refuses layers after a model is built
    model.more = [keras.layers.Dense(2)]
    model.more[0].build((None, 6))
    told = (
        "no longer the stack that was loaded or created, so it is not saved: it does not hold the variables of stack: "
    )
    refused(
        f"{told}it holds layers/dense_2/vars/0 beside them; it holds layers/dense_2/vars/1 beside",
        tf_models.save,
        model,
        path,
    )
    model = tf_models.load(original)
    model._tracker.unlock()
    model.dense = [model.dense[0], keras.layers.Dense(4)]
    model.dense[1].build((None, 6))
    refused(r"dense/dense_1/vars/0 has shape \(6, 4\), and not \(6, 6\)", tf_models.save, model, path)
    model = tf_models.load(original)
    model._tracker.unlock()
    model.dense = model.dense[:1]
    refused("it lacks dense/dense_1/vars/0", tf_models.save, model, path)
    assert os.listdir(tmp_path) == []


def test_the_output_is_written_whole_or_not_at_all(original, tmp_path, monkeypatch):
    model = tf_models.load(original)
    path = tmp_path / "tuned.weights.h5"
    refused("must end in .weights.h5", tf_models.save, model, tmp_path / "tuned.h5")
    tf_models.save(model, path)
    first = path.read_bytes()
    refused("tuned.weights.h5 exists; overwrite=True replaces it", tf_models.save, model, path)
    fitted(model)

    def full(*_, **__):
        raise OSError("Can't write data (file write failed: error message = 'No space left on device')")

    with monkeypatch.context() as patch:
        patch.setattr(h5py.Group, "create_dataset", full)
        refused("tuned.weights.h5 cannot be written: the disk is full", tf_models.save, model, path, overwrite=True)
        assert path.read_bytes() == first
    assert os.listdir(tmp_path) == [path.name]
    tf_models.save(model, path, overwrite=True)
    assert path.read_bytes() != first
    (tmp_path / "a_file").write_text("")
    refused("cannot be written: ", tf_models.save, model, tmp_path / "a_file" / "tuned.weights.h5")


# --- What Keras saved ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [None, "adam", "sgd"])
def test_a_file_that_keras_saved_is_loaded_like_its_original(original, optimizer, tmp_path):
    model = tf_models.load(original)
    if optimizer:
        fitted(model, optimizer)
    model.save_weights(tmp_path / PLAIN)
    assert any(place.startswith("optimizer/") for place in stored(tmp_path / PLAIN)) == bool(optimizer)
    found = tf_models.load(tmp_path / PLAIN, like=original)
    assert_same(found, model)
    tf_models.save(found, tmp_path / "again.weights.h5")
    assert provenance(tmp_path / "again.weights.h5")["source"] == "0.pth"


def test_the_part_of_a_larger_file_that_is_the_model(original, tmp_path):
    model = tf_models.load(original)
    trainer = fitted(outer(fitted(model)))
    trainer.save_weights(tmp_path / PLAIN)
    assert_same(tf_models.load(tmp_path / PLAIN, like=original), model)
    told = known_like(tmp_path / PLAIN, original)["trained"]
    assert told == "after the conversion, as the part layers/stack of a larger model"
    x = keras.Input((6,))
    twice = keras.Model(x, tf_models.load(original)(model(x)))
    twice.save_weights(tmp_path / "twice.weights.h5")
    refused(r"holds stack 2 times \(layers/stack, layers/stack_1\); save the model that is meant alone",
            tf_models.load, tmp_path / "twice.weights.h5", like=original)  # fmt: skip


def test_a_file_of_another_model_says_which_variables_differ(original, tmp_path):
    path = tmp_path / PLAIN
    converted.build_tf(width=5).save_weights(path)
    refused(r"plain.weights.h5: does not hold the variables of stack: dense/dense/vars/0 has shape \(5, 5\), and not "
            r"\(6, 6\); .*, and 5 more", tf_models.load, path, like=original)  # fmt: skip
    converted.build_tf(depth=3).save_weights(path)
    refused("it holds dense/dense_2/vars/0 beside them; it holds dense/dense_2/vars/1 beside them; it holds layers",
            tf_models.load, path, like=original)  # fmt: skip
    converted.build_tf(depth=1).save_weights(path)
    refused("it lacks dense/dense_1/vars/0; it lacks dense/dense_1/vars/1", tf_models.load, path, like=original)
    with h5py.File(path, "w") as file:
        file["layers/other/vars/0"] = np.zeros((3, 2), np.float32)
    refused("it lacks dense/dense/vars/0", tf_models.load, path, like=original)
    x = keras.Input((6,))
    keras.Model(x, converted.build_tf(width=6, more=lambda: keras.layers.Dense(2))(x)).save_weights(path)
    refused("does not hold the variables of stack in layers/stack: it holds layers/dense_2/vars/0 beside them",
            tf_models.load, path, like=original)  # fmt: skip


def test_files_that_are_mistaken_for_one_another(original, tmp_path):
    model = tf_models.load(original)
    model.save_weights(tmp_path / PLAIN)
    refused("0.weights.h5: says itself where it is from", tf_models.load, original, like=original)
    refused("plain.weights.h5: carries no provenance; if Keras saved it after training, name .*--like ORIGINAL.*"
            r"tf_models.save\(model, path\)", tf_models.load, tmp_path / PLAIN)  # fmt: skip
    refused("plain.weights.h5: carries no provenance", tf_models.load, tmp_path / PLAIN, like=tmp_path / PLAIN)
    refused("gone.weights.h5: no such file", tf_models.load, tmp_path / PLAIN, like=tmp_path / "gone.weights.h5")
    notes = converter.inspect(tmp_path / PLAIN).notes
    assert "--like ORIGINAL" in notes[0]
    assert "tf_models.save" in notes[0]


def test_a_stranger_among_the_values_is_refused(original, tmp_path):
    model = tf_models.load(original)
    place = min(stored(original))
    path = tmp_path / PLAIN
    for match, change in {
        "is not stored plainly": lambda file: file.create_dataset(place, data=np.zeros((6, 6), "f4"), chunks=(2, 2)),
        "has dtype int32": lambda file: file.create_dataset(place, data=np.zeros((6, 6), "i4")),
        "is a link": lambda file: file.__setitem__(place, h5py.ExternalLink("/etc/passwd", "/")),
    }.items():
        model.save_weights(path)
        with h5py.File(path, "r+") as file:
            del file[place]
            change(file)
        refused(f"{place} {match}", tf_models.load, path, like=original)


def test_the_weights_of_a_keras_archive(tmp_path):
    """The command that the message names is run."""
    model = tf_models.create("dcn_v2", in_channels=6, out_channels=4)
    converted_like = tf_models.save(model, tmp_path / "like.weights.h5")
    model.compile("adam", "mse")
    model.save(tmp_path / "tuned.keras")
    error = refused("is a Keras archive; take the weights out, and name those: unzip -p tuned.keras model.weights.h5 > "
                    "tuned.weights.h5", tf_models.load, tmp_path / "tuned.keras", like=converted_like)  # fmt: skip
    command = str(error).rpartition("those: ")[2]
    for name in ("tuned.weights.h5", "tuned-2.weights.h5"):  # what is there is not written over
        (tmp_path / name).write_bytes(b"x")
    again = refused("take the weights out", tf_models.load, tmp_path / "tuned.keras", like=converted_like)
    assert str(again).endswith("unzip -p tuned.keras model.weights.h5 > tuned-3.weights.h5")
    with zipfile.ZipFile(tmp_path / "tuned.keras") as archive:
        (tmp_path / command.rpartition(" > ")[2]).write_bytes(archive.read(command.split()[3]))
    assert_same(tf_models.load(tmp_path / "tuned.weights.h5", like=converted_like), model)


def test_a_record_of_training_from_a_stranger_is_checked(original, tmp_path):
    path = tf_models.save(tf_models.load(original), tmp_path / "tuned.weights.h5")

    def change(file):
        file.attrs["weightbridge_trained"] = 3

    converted.tampered(path, change, signed=True)
    refused("does not say since when its weights are trained", tf_models.load, path)
