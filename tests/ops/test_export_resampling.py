"""Exported, the ops run without this package: as a SavedModel in a fresh process, and in the TFLite interpreter."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tf_models.ops import affine_grid, interpolate, jit, paste_masks, roi_align

RANDOM = np.random.default_rng(0)
IMAGE = RANDOM.random((2, 9, 7, 3), np.float32)
MASKS = RANDOM.random((2, 5, 4), np.float32)
BOXES = np.array([[1, 2, 6, 7], [0, 0, 3, 9]], np.float32)
ROIS = np.array([[0, 1, 2, 6, 7], [1, 0, 0, 3.5, 9]], np.float32)
THETA = RANDOM.random((2, 2, 3), np.float32)

# name -> function and its example arguments
OPS = {
    "affine_grid": (lambda theta: affine_grid(theta, (2, 5, 6, 1)), [THETA]),
    "nearest": (lambda x: interpolate(x, (5, 11), mode="nearest"), [IMAGE]),
    "nearest-exact": (lambda x: interpolate(x, (5, 11), mode="nearest-exact"), [IMAGE]),
    "area": (lambda x: interpolate(x, (5, 11), mode="area"), [IMAGE]),
    "bilinear": (lambda x: interpolate(x, (5, 11), mode="bilinear"), [IMAGE]),
    "bicubic": (lambda x: interpolate(x, scale_factor=1.7, mode="bicubic"), [IMAGE]),
    "bilinear antialias": (lambda x: interpolate(x, (5, 11), mode="bilinear", antialias=True), [IMAGE]),
    "bicubic antialias": (lambda x: interpolate(x, (5, 11), mode="bicubic", antialias=True), [IMAGE]),
    "linear": (lambda x: interpolate(x, 11, mode="linear"), [IMAGE[0]]),
    "trilinear": (lambda x: interpolate(x, (3, 11, 5), mode="trilinear"), [IMAGE[None]]),
    "paste_masks": (lambda masks, boxes: paste_masks(masks, boxes, (12, 10)), [MASKS, BOXES]),
    "roi_align": (lambda x, rois: roi_align(x, rois, (2, 3), sampling_ratio=2), [IMAGE, ROIS]),
    "roi_align adaptive": (lambda x, rois: roi_align(x, rois, (2, 3), aligned=True), [IMAGE, ROIS]),
}

RUN = """
import sys
import numpy as np
import tensorflow as tf

model = tf.saved_model.load("model")
for name in np.load("names.npy"):
    saved = np.load(f"{name}.npz")
    arguments = [tf.constant(saved[f"argument{i}"]) for i in range(len(saved.files) - 1)]
    np.testing.assert_allclose(getattr(model, str(name))(*arguments), saved["expected"], rtol=1e-6, atol=1e-6)
assert "tf_models" not in sys.modules
print("all equal")
"""


def check_saved_model(folder, titles):
    """Every size unknown when it is saved."""
    model, names = tf.Module(), []
    for title in titles:
        function, arguments = OPS[title]
        name = title.replace(" ", "_").replace("-", "_")
        names.append(name)
        shapes = [value.shape if title == "affine_grid" else [None] * value.ndim for value in arguments]
        specs = [tf.TensorSpec(shape, tf.float32) for shape in shapes]
        setattr(model, name, tf.function(function, input_signature=specs, autograph=False))
        saved = {f"argument{i}": value for i, value in enumerate(arguments)}
        np.savez(folder / f"{name}.npz", expected=function(*map(tf.constant, arguments)).numpy(), **saved)
    np.save(folder / "names.npy", names)
    tf.saved_model.save(model, str(folder / "model"))
    done = subprocess.run([sys.executable, "-c", RUN], cwd=folder, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "all equal", done.stderr[-2000:]


def test_saved_model_runs_in_a_fresh_process(tmp_path):
    check_saved_model(tmp_path, ["affine_grid", "bicubic antialias", "paste_masks", "roi_align adaptive"])


@pytest.mark.slow
def test_saved_model_of_every_op(tmp_path):
    check_saved_model(tmp_path, OPS)


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated:UserWarning")
@pytest.mark.parametrize("name", [name for name in OPS if name != "paste_masks"])  # It computes in float64.
def test_tflite(name):
    """Static shapes, built-in ops only."""
    function, arguments = OPS[name]
    specs = [tf.TensorSpec(value.shape, tf.float32) for value in arguments]
    with jit(False):
        concrete = tf.function(function, autograph=False).get_concrete_function(*specs)
        flat = tf.lite.TFLiteConverter.from_concrete_functions([concrete]).convert()
    interpreter = tf.lite.Interpreter(model_content=flat)
    interpreter.allocate_tensors()
    for detail, value in zip(interpreter.get_input_details(), arguments, strict=True):
        interpreter.set_tensor(detail["index"], value)
    interpreter.invoke()
    ours = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(ours, function(*map(tf.constant, arguments)), rtol=1e-5, atol=1e-6)
