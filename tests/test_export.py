"""Exports: what they hold, that they run without this package, and that they compute what Keras computes."""

import itertools
import json
import os
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch

import converter
import tf_models
from converter import ConversionError, UsageError
from converter.exporting import _as_numbers, _difference
from converter.files.atomic import NewFolder
from converter.progress import Silent
from converter.report import size
from tests.support.carrying import twin
from tests.support.checkpoints import save
from tests.support.pairs import registered
from tests.support.rule import assert_allowed, assert_as_exact
from tests.support.running import run_forked
from tests.support.seeded import seeded
from tests.support.small_sam import CONFIG, IMAGE_ENCODER, sam_state
from tf_models.runtime import exporting
from tf_models.runtime.exporting import ExportError, Input, Part, Signature
from tf_models.sam import Predictor, from_pixels, relative_attention
from tf_models.sam.transforms import ResizeLongestSide
from torch_refs.sam.image_encoder import ImageEncoderViT
from torch_refs.sam.sam import build_sam

# Of the image encoder only what an export can get wrong: one block in windows that are cut, one that attends globally.
ENCODER = {**IMAGE_ENCODER, "depth": 2}
CHANGES = {"depth": 2}
PARTS = ("image_encoder", "prompt_encoder", "mask_decoder")  # that are exported in both formats


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A small whole Segment Anything, converted."""
    folder = tmp_path_factory.mktemp("export")
    path = folder / "sam.weights.h5"
    checkpoint = save(sam_state(**CHANGES), folder)
    converter.convert("sam_vit_b", checkpoint, path, verify="lossless", options={"num_heads": 4})
    return path


def only(part, *signatures):
    """`exporting.parts` with this one alone and of it these signatures, for exports that take less time."""
    known = exporting.parts

    def parts(name, model):
        (chosen,) = [one for one in known(name, model) if one.name == part]
        return [replace(chosen, signatures={name: chosen.signatures[name] for name in signatures})]

    return parts


@pytest.fixture(scope="module")
def saved(weights):
    """The whole as SavedModels."""
    return converter.export(weights, weights.parent / "saved")


@pytest.fixture(scope="module")
def served(weights):
    """A folder with the signatures of the part `from_pixels` that differ most."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "parts", only("from_pixels", "points", "encoded_boxes"))
        report = converter.export(weights, weights.parent / "served", part="from_pixels")
    names = [difference.name for one in report.parts for difference in one.differences]
    assert names == ["points.masks", "points.iou", "encoded_boxes.masks", "encoded_boxes.iou"]
    return report.output / "1"


def test_from_pixels_gives_the_masks_of_the_predictor(weights, served):
    predictor = Predictor(tf_models.load(weights))
    signatures = tf.saved_model.load(str(served)).signatures
    assert set(signatures) == {"serving_default", "points", "encoded_boxes"}
    rng = np.random.default_rng(0)
    for height, width in ((137, 101), (40, 100), (80, 80)):  # made smaller, larger, and as it is
        image = rng.integers(0, 256, (height // 4, width // 4, 3), np.uint8).repeat(4, 0).repeat(4, 1)
        height, width = image.shape[:2]
        predictor.set_image(image)
        coords = (rng.random((3, 2, 2)) * (width, height)).astype(np.float32)
        labels = np.array([[1, 0], [1, -1], [1, 1]], np.int32)
        found = signatures["points"](
            image=tf.constant(image), point_coords=tf.constant(coords), point_labels=tf.constant(labels)
        )
        expected = predictor.predict(coords, labels, return_logits=True)
        assert_same_masks(found, expected, (3, 3, height, width))
        boxes = np.sort(coords, axis=1).reshape(3, 4)
        encoded = tf.io.encode_png(image)
        found = signatures["encoded_boxes"](encoded=encoded, boxes=tf.constant(boxes))
        expected = predictor.predict(boxes=boxes, multimask_output=False, return_logits=True)
        assert_same_masks(found, expected, (3, 1, height, width))


def assert_same_masks(found, expected, shape):
    """Pixels may be on the other side only where float32 cannot tell."""
    logits, iou, _ = expected
    masks = found["masks"].numpy()
    assert (masks.dtype, masks.shape) == (np.bool_, shape)
    assert (logits > 0).any()
    differ = masks != (logits > 0)
    assert np.abs(logits[differ]).max(initial=0) <= 1e-5 * np.abs(logits).max()
    np.testing.assert_allclose(found["iou"], iou, atol=1e-5)


def test_a_picture_is_scaled_in_a_graph_to_the_same_bits():
    shapes = [tf.TensorSpec((None, None, 3), tf.uint8), tf.TensorSpec((2,), tf.int32)]
    scaled = tf.function(from_pixels.scaled, input_signature=shapes, autograph=False)
    for shape in ((1, 7), (80, 80), (81, 80), (79, 33), (317, 200), (5, 400), (333, 332)):
        image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
        expected = ResizeLongestSide(80).apply_image(image)
        np.testing.assert_array_equal(scaled(tf.constant(image), tf.constant(expected.shape[:2])), expected)


def test_a_sign_that_differs_counts_as_the_way_to_zero(weights, tmp_path, monkeypatch):
    """Masks that are wrong somewhere are refused, and not because a pixel near the threshold is."""
    keras = np.array([[3.0, -1e-9], [-2.0, 0.5]])
    np.testing.assert_array_equal(_as_numbers(keras > 0, keras), keras)
    np.testing.assert_array_equal(_as_numbers(np.array([[True, True], [True, True]]), keras), [[3, 0], [0, 0.5]])
    assert _as_numbers(np.zeros((3, 3), bool), keras).shape == (3, 3)
    monkeypatch.setattr(exporting, "parts", only("from_pixels", "points"))
    true = from_pixels.segment

    def traced_wrong(*arguments, **options):
        logits, iou = true(*arguments, **options)
        return (logits if tf.executing_eagerly() else logits + 0.01), iou

    monkeypatch.setattr(from_pixels, "segment", traced_wrong)
    with pytest.raises(converter.ProofError, match=r"nothing was written: points.masks: error"):
        converter.export(weights, tmp_path / "out", part="from_pixels")


def test_a_part_that_a_format_lacks(weights, tmp_path):
    with pytest.raises(UsageError, match=r"^TensorFlow Lite has no ops for from_pixels; take saved_model$"):
        converter.export(weights, tmp_path / "o.tflite", "tflite", part="from_pixels")


def prompts(count, points):
    rng = np.random.default_rng(count)
    coords = rng.random((count, points, 2), np.float32) * 80
    return coords, rng.integers(0, 2, (count, points)).astype(np.int32)


def test_a_whole_model_is_exported_in_its_parts(saved):
    assert [one.part for one in saved.parts] == list(PARTS)
    for one in saved.parts:
        assert one.output == saved.output / one.part / "1"
        assert (one.output / "saved_model.pb").is_file()
        assert one.differences
        assert all(one.differences), str(saved)
        assert one.nbytes == sum(path.stat().st_size for path in one.output.rglob("*") if path.is_file())
    names = [difference.name for difference in saved.parts[1].differences]
    assert "points_boxes_masks.sparse_prompt_embeddings" in names
    assert json.loads((saved.output / "export.json").read_text())["model"] == "sam_vit_b"
    lines = str(saved).splitlines()
    assert lines[0] == f"model     sam_vit_b of {saved.source}"
    assert lines[-1].startswith(f"written   {saved.output} in ")


SERVE = """
import sys
import numpy as np
import tensorflow as tf

given = np.load("given.npz")
image_encoder, prompt_encoder, mask_decoder = (
    tf.saved_model.load(f"{sys.argv[1]}/{part}/1") for part in ("image_encoder", "prompt_encoder", "mask_decoder")
)
embedding = image_encoder.signatures["serving_default"](image=tf.constant(given["image"]))
for count, points in ((1, 1), (3, 4), (9, 2)):
    prompts = prompt_encoder.signatures["serving_default"](
        point_coords=tf.constant(given[f"coords{count}"]), point_labels=tf.constant(given[f"labels{count}"])
    )
    for name in ("multimask", "single_mask"):
        for key, value in mask_decoder.signatures[name](**embedding, **prompts).items():
            np.save(f"{name}_{key}_{count}.npy", value)
for package in ("tf_models", "converter", "torch_refs", "torch"):
    assert package not in sys.modules
try:
    import tf_models
except ImportError:
    print("alone")
"""


def test_a_saved_model_runs_without_this_package_on_any_number_of_prompts(saved, tmp_path):
    image = np.random.default_rng(0).standard_normal((1, 80, 80, 3), dtype=np.float32)
    given = {"image": image}
    for count, points in ((1, 1), (3, 4), (9, 2)):
        coords, labels = prompts(count, points)
        given |= {f"coords{count}": coords, f"labels{count}": labels}
    np.savez(tmp_path / "given.npz", **given)
    # -I and -S: neither the current folder, nor an installed copy of this package; TensorFlow alone by its folder.
    home = os.path.dirname(os.path.dirname(tf.__file__))
    code = f"import sys; sys.path.append({home!r})\n{SERVE}"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(saved.output)],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "alone", done.stderr[-2000:]
    reference = build_sam(**CONFIG | {"image_encoder": ENCODER})
    reference.load_state_dict(sam_state(**CHANGES))
    reference.double()
    picture = torch.from_numpy(image).double().movedim(-1, 1)
    for count, name in itertools.product((1, 3, 9), ("multimask", "single_mask")):
        coords, labels = (torch.from_numpy(given[f"{part}{count}"]) for part in ("coords", "labels"))
        assert_as_exact(
            [np.load(tmp_path / f"{name}_{key}_{count}.npy") for key in ("masks", "iou")],
            partial(reference, picture, coords.double(), labels, multimask_output=name == "multimask"),
        )


def test_signatures_name_inputs_and_leave_numbers_of_prompts_free(saved):
    loaded = tf.saved_model.load(str(saved.output / "mask_decoder" / "1"))
    inputs = loaded.signatures["serving_default"].structured_input_signature[1]
    assert {name: tuple(spec.shape) for name, spec in inputs.items()} == {
        "image_embeddings": (None, None, None, 32),
        "image_pe": (1, None, None, 32),
        "sparse_prompt_embeddings": (None, None, 32),
        "dense_prompt_embeddings": (None, None, None, 32),
    }
    assert set(loaded.signatures["serving_default"].structured_outputs) == {"masks", "iou"}


@pytest.mark.parametrize(
    ("part", "dtype"),
    [
        ("image_encoder", "float32"),
        ("image_encoder", "int8-dynamic"),
        ("prompt_encoder", "float32"),
        ("mask_decoder", "float32"),
        pytest.param("image_encoder", "float16", marks=pytest.mark.slow),
        pytest.param("prompt_encoder", "float16", marks=pytest.mark.slow),
        pytest.param("prompt_encoder", "int8-dynamic", marks=pytest.mark.slow),
        pytest.param("mask_decoder", "float16", marks=pytest.mark.slow),
        pytest.param("mask_decoder", "int8-dynamic", marks=pytest.mark.slow),
    ],
)
def test_tflite(weights, tmp_path, part, dtype):
    sizes = {"prompts": 3} if part != "image_encoder" else None
    report = converter.export(weights, tmp_path / "o.tflite", "tflite", dtype=dtype, part=part, sizes=sizes)
    (one,) = report.parts
    assert one.nbytes == (tmp_path / "o.tflite").stat().st_size
    assert os.listdir(tmp_path) == ["o.tflite"]
    assert all(one.differences), str(report)
    assert ("is lossy" in str(report)) == (dtype != "float32")
    bargain = {heading: text for heading, text in report.lines() if heading in ("saved", "cost")}
    if dtype == "float32":
        assert bargain == {}
    else:
        ratio = one.nbytes / one.weights_nbytes
        assert (
            f" are {size(one.nbytes)} on disk, {abs(1 - ratio):.0%} {'less' if ratio < 1 else 'MORE'}"
            in bargain["saved"]
        )
        assert bargain["saved"].startswith(f"{size(one.weights_nbytes)} of float32 weights are ")
        worst = max(one.differences, key=lambda each: each.error / each.scale)
        assert bargain["cost"] == (
            f"an error of at most {worst.error / worst.scale:.1%} of the output's own size, in {part}, {worst.name}"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        interpreter = tf.lite.Interpreter(str(tmp_path / "o.tflite"))
    for name, signature in exporting.parts("sam_vit_b", tf_models.load(weights))[PARTS.index(part)].signatures.items():
        if name == "masks":
            assert name not in interpreter.get_signature_list()
            continue
        shapes = {
            key: tuple(detail["shape"])
            for key, detail in interpreter.get_signature_runner(name).get_input_details().items()
        }
        assert shapes == {key: one.known({**signature.sizes, **(sizes or {})}) for key, one in signature.inputs.items()}
    ops = {op["op_name"] for op in interpreter._get_ops_details()}
    assert not any(name.startswith("Flex") for name in ops)


def test_tflite_of_attention_in_pieces(monkeypatch):
    """Where all scores at once are too many, the image encoder attends in a loop over heads."""
    monkeypatch.setattr(relative_attention, "_SCORES", 5000)
    reference = seeded(ImageEncoderViT(img_size=80, **ENCODER))
    model = twin("sam_image_encoder", {"image_size": 80, **ENCODER}, reference.state_dict())
    reference.double()
    (part,) = exporting.parts("sam_image_encoder", model)
    flat = exporting.lite(part)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encode = tf.lite.Interpreter(model_content=flat).get_signature_runner("encode")
    inputs = part.signatures["encode"].probe({"images": 1})
    image = torch.from_numpy(np.asarray(inputs["image"])).double().movedim(-1, 1)
    assert_as_exact([encode(**inputs)["image_embeddings"]], lambda: [reference(image)])


def test_float16_stores_half(saved, weights, tmp_path):
    report = converter.export(weights, tmp_path / "half", dtype="float16", part="image_encoder")
    (half,) = report.parts
    (whole, _, _) = saved.parts
    stored = [path.stat().st_size for one in (half, whole) for path in [one.output / "variables"]
              for path in path.glob("variables.data*")]  # fmt: skip
    assert stored[0] < 0.6 * stored[1]
    assert half.output == tmp_path / "half" / "1"
    assert 0 < half.differences[0].relative < 2.0**-5


def test_a_wrong_export_is_refused(weights, tmp_path, monkeypatch):
    """The rule can fail: an export whose weights are off by a thousandth is not written."""
    true_save = exporting.save

    def wrong(part, folder, dtype="float32", sizes=None):
        values = [variable * 1.001 for variable in part.model.weights]
        before = [np.asarray(variable) for variable in part.model.weights]
        for variable, value in zip(part.model.weights, values, strict=True):
            variable.assign(value)
        true_save(part, folder, dtype, sizes)
        for variable, value in zip(part.model.weights, before, strict=True):
            variable.assign(value)

    monkeypatch.setattr(exporting, "save", wrong)
    with pytest.raises(converter.ProofError, match="differs from Keras, nothing was written"):
        converter.export(weights, tmp_path / "out", part="image_encoder")
    assert os.listdir(tmp_path) == []


def dense(weight):
    """A pair of one layer without a bias, and what its first input is in the proof: 0."""
    rows, columns = weight.shape

    def build(**_config):
        model = keras.Sequential([keras.layers.Input((rows,)), keras.layers.Dense(columns, use_bias=False)])
        model.layers[0].set_weights([weight])
        return model

    def probes(_config, rng):
        x = rng.standard_normal((3, rows), dtype=np.float32)
        x[:, 0] = 0
        return [converter.Probe({"x": x})]

    return converter.Pair(
        name="one_dense",
        build_tf=build,
        build_torch="nowhere:missing",
        mapping=lambda config: converter.Mapping([converter.Row("layers.0", converter.kinds.DENSE)]),
        probes=probes,
    )


@pytest.mark.parametrize(("large", "lost"), [(2.0, False), (1e6, True)], ids=["some", "all"])
def test_eight_bits_that_lose_everything_are_refused(tmp_path, monkeypatch, large, lost):
    """A weight so large that all others of its column round to nothing beside it; no input reaches it."""
    weight = np.random.default_rng(0).standard_normal((80, 40)).astype(np.float32)
    weight[0] = large
    pair = dense(weight)
    monkeypatch.setattr("converter.exporting.declared", lambda _path, **_: {"model": "one_dense", "config": {}})
    monkeypatch.setattr("converter.exporting.load", lambda _path, **_: pair.build_tf())
    said = []

    class Told(Silent):
        def start(self, stage, total):
            said.append((stage, total))

    with registered(pair):
        export = partial(converter.export, tmp_path / "w.weights.h5", format="tflite", dtype="int8-dynamic")
        if not lost:
            report = export(progress=Told())
            assert 0 < report.parts[0].differences[0].relative < 0.2
            assert said == [("loading the model", 0), ("converting one_dense", 0), ("comparing one_dense", 0)]
            return
        told = "^8 bits are too few, an error is as large as the output: take float16, nothing was written: call.output"
        with pytest.raises(converter.ProofError, match=told) as caught:
            export()
    assert caught.value.exit_code == 1
    (difference,) = caught.value.report.parts[0].differences
    assert difference.relative == 1.0, "all that came out is 0"
    assert os.listdir(tmp_path) == []


def test_what_cannot_be_compared_is_told_as_that():
    keras_output = np.ones((2, 3))
    shape = _difference("call.y", np.ones((3, 2)), keras_output, [], "float32")
    finite = _difference("call.y", np.full((2, 3), np.nan), keras_output, [], "int8-dynamic")
    assert str(shape) == "call.y: its shape is (3, 2), Keras's (2, 3)"
    assert str(finite) == "call.y: it holds values that are not finite"
    assert not shape
    assert not finite


def test_parts_and_axes_are_known_without_the_model(weights):
    whole = exporting.parts("sam_vit_b", tf_models.load(weights))
    held = {one.name: {axis for signature in one.signatures.values() for axis in signature.sizes} for one in whole}
    for name in exporting.by_name_only("sam_vit_b"):
        held[name] = set()  # a SavedModel takes any length: there is nothing to choose
    assert {name: set(axes) for name, axes in exporting.axes("sam_vit_b").items()} == held
    for network in tf_models.networks():
        assert getattr(network, "AXES", {}).keys() == getattr(network, "SIGNATURES", {}).keys()
    for name, part in (("sam_decoder", "mask_decoder"), ("sam_prompt_encoder", "prompt_encoder")):
        assert {each: set(axes) for each, axes in exporting.axes(name).items()} == {part: held[part]}
    assert exporting.axes("deform_conv2d") is None


def test_an_op_that_tensorflow_lite_lacks_is_named():
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])
    part = Part("part", model, {"call": Signature({"x": Input((2, 3))}, lambda x: {"y": tf.math.erf(model(x))})})
    with pytest.raises(ExportError, match="part: TensorFlow Lite has no built-in op for Erf"):
        exporting.lite(part)


def test_usage(weights, tmp_path):
    with pytest.raises(UsageError, match=r"holds no decoder, but image_encoder, .*, from_pixels"):
        converter.export(weights, tmp_path / "o", part="decoder")
    with pytest.raises(
        UsageError, match=r"no input has an axis people; known: images, prompts, points, height, width, tokens$"
    ):
        converter.export(weights, tmp_path / "o.tflite", "tflite", part="mask_decoder", sizes={"people": 2})
    with pytest.raises(UsageError, match="prompts takes a whole number from 1, not 0"):
        converter.export(weights, tmp_path / "o.tflite", "tflite", part="mask_decoder", sizes={"prompts": 0})
    with pytest.raises(UsageError, match="a SavedModel takes any"):
        converter.export(weights, tmp_path / "o", sizes={"prompts": 2})
    with pytest.raises(UsageError, match="int8-dynamic is for tflite only"):
        converter.export(weights, tmp_path / "o", dtype="int8-dynamic")
    with pytest.raises(ConversionError, match=r"must end in \.tflite"):
        converter.export(weights, tmp_path / "o", "tflite", part="prompt_encoder")
    with pytest.raises(ConversionError, match="no such file"):
        converter.export(tmp_path / "none.weights.h5")
    assert os.listdir(tmp_path) == []


def test_only_an_export_is_replaced(tmp_path):
    def write(overwrite, text="new"):
        with NewFolder(tmp_path / "out", overwrite, "mark").written() as folder:
            (folder / "mark").write_text(text)

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    with pytest.raises(ConversionError, match="exists; --overwrite replaces it"):
        write(False)
    with pytest.raises(ConversionError, match="a folder without mark, so none of ours"):
        write(True)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "precious"
    (tmp_path / "out" / "mark").touch()
    write(True)
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["mark"]
    with pytest.raises(ValueError, match="failed"), NewFolder(tmp_path / "out", True, "mark").written():
        raise ValueError("failed")
    assert (tmp_path / "out" / "mark").read_text() == "new"
    assert os.listdir(tmp_path) == ["out"]
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with pytest.raises(ConversionError, match="symbolic link"), NewFolder(tmp_path / "link", True, "mark").written():
        pass
    (tmp_path / "file").touch()
    with pytest.raises(ConversionError, match="not a folder"), NewFolder(tmp_path / "file", True, "mark").written():
        pass


def test_the_command(weights, tmp_path):
    command = ("weightbridge", "export", weights, "--format", "saved_model", "--part", "image_encoder", "-o", "out")
    done = run_forked(*command, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    headings = [line.split()[0] for line in done.stdout.splitlines()]
    assert headings == ["model", "format", "part", "output", "written"]
    done = run_forked(*command, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "error: the output out exists; --overwrite replaces it\n")
    done = run_forked(*command, "--overwrite", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["parts"][0]["output"] == "out/1"
    done = run_forked("weightbridge", "export", weights, "--format", "tflite", "--size", "prompts=many", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


OWN = """
import keras
import numpy as np
from converter import Mapping, Pair, Probe, Row, kinds


class Own(keras.Model):
    def __init__(self, width=5):
        super().__init__()
        self.head = keras.layers.Dense(width)
        self.head.build((None, 3))
        self.built = True

    def call(self, image):
        return self.head(keras.ops.relu(image))


PAIR = Pair(
    name="own", build_tf=Own, build_torch="own:missing", channels_first=frozenset({"image", "output"}),
    mapping=lambda config: Mapping([Row("head", kinds.DENSE)]),
    probes=lambda config, rng: [Probe({"image": rng.standard_normal((2, 3, 4, 6), dtype=np.float32)})],
    configure=lambda shapes, options: {"width": shapes["head.weight"][0]},
)
"""


def test_a_pair_of_ones_own_is_exported_by_its_probes(tmp_path, monkeypatch):
    import safetensors.numpy

    (tmp_path / "own.py").write_text(OWN)
    rng = np.random.default_rng(0)
    state = {
        "head.weight": rng.standard_normal((5, 3), dtype=np.float32),
        "head.bias": rng.standard_normal(5, dtype=np.float32),
    }
    safetensors.numpy.save_file(state, tmp_path / "own.safetensors")
    monkeypatch.syspath_prepend(tmp_path)
    import own

    with registered(own.PAIR):
        converter.convert("own", tmp_path / "own.safetensors", tmp_path / "own.weights.h5", verify="lossless")
        report = converter.export(tmp_path / "own.weights.h5")
        lite = converter.export(tmp_path / "own.weights.h5", format="tflite", sizes={"image.1": 8})
    assert report.output == tmp_path / "own_saved_model"
    assert lite.output == tmp_path / "own.tflite"
    call = exporting.runner(tmp_path / "own_saved_model" / "1", "serving_default")
    image = rng.standard_normal((1, 7, 9, 3), dtype=np.float32)
    x, weight, bias = (torch.from_numpy(value).double() for value in (image, *state.values()))
    output = call(image=image)["output"]
    assert_allowed([output], lambda: [torch.nn.functional.linear(x.relu(), weight, bias)])


def test_the_page_runs_as_written(saved, tmp_path):
    page = (Path(__file__).parent.parent / "docs" / "export.md").read_text()
    (code,) = re.findall(r"^`serve.py`\n\n```python\n(.*?)^```", page, re.M | re.S)
    (tmp_path / "serving").symlink_to(saved.output)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr[-2000:]
    assert re.fullmatch(r"\(40, 27\): mask [012] of 40 x 40, iou -?\d+\.\d\d", lines[1])


def test_the_page_of_serving_runs_as_written(served, tmp_path):
    page = (Path(__file__).parent.parent / "docs" / "serving.md").read_text()
    (code,) = re.findall(r"^`client.py`\n\n```python\n(.*?)^```", page, re.M | re.S)
    (tmp_path / "serving" / "sam").mkdir(parents=True)
    (tmp_path / "serving" / "sam" / "1").symlink_to(served)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout == "mask of (60, 90)\nmask of (60, 90)\n", done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "dtype"), [("saved_model", "float32"), ("tflite", "float32"), ("tflite", "float16")]
)
def test_vit_b(tmp_path, format, dtype):
    from torch_refs.sam.seeded_checkpoint import write_seeded_checkpoint

    checkpoint = tmp_path / "sam_vit_b.pth"
    write_seeded_checkpoint(checkpoint, "vit_b")
    converter.convert("sam_vit_b", checkpoint, tmp_path / "s.weights.h5", verify="none")
    report = converter.export(tmp_path / "s.weights.h5", format=format, dtype=dtype)
    assert len(report.parts) == (4 if format == "saved_model" else 3)
    assert all(difference for one in report.parts for difference in one.differences)
