"""Exported, the ops run without this package: as a SavedModel in a fresh process, and in the TFLite interpreter."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import torch
import torch.nn.functional as F
import torchvision
from torchvision.models.detection.roi_heads import paste_masks_in_image

from tests.support.judging import assert_near
from tf_models.ops import affine_grid, interpolate, jit, paste_masks, roi_align

RANDOM = np.random.default_rng(0)
IMAGE = RANDOM.random((2, 9, 7, 3), np.float32)
MASKS = RANDOM.random((2, 5, 4), np.float32)
BOXES = np.array([[1, 2, 6, 7], [0, 0, 3, 9]], np.float32)
ROIS = np.array([[0, 1, 2, 6, 7], [1, 0, 0, 3.5, 9]], np.float32)
THETA = RANDOM.random((2, 2, 3), np.float32)


def resized(*size, **options):
    """The op on both sides."""
    return (
        lambda x: interpolate(x, *size, **options),
        lambda x: F.interpolate(x.movedim(-1, 1), *size, **options).movedim(1, -1),
    )


def pooled(*size, **options):
    return (
        lambda x, rois: roi_align(x, rois, *size, **options),
        lambda x, rois: torchvision.ops.roi_align(x.movedim(-1, 1), rois, *size, **options).movedim(1, -1),
    )


# name -> function, torch's, and their example arguments
OPS = {
    "affine_grid": (
        lambda theta: affine_grid(theta, (2, 5, 6, 1)),
        lambda theta: F.affine_grid(theta, (2, 1, 5, 6), align_corners=False),
        [THETA],
    ),
    "nearest": (*resized((5, 11), mode="nearest"), [IMAGE]),
    "nearest-exact": (*resized((5, 11), mode="nearest-exact"), [IMAGE]),
    "area": (*resized((5, 11), mode="area"), [IMAGE]),
    "bilinear": (*resized((5, 11), mode="bilinear"), [IMAGE]),
    "bicubic": (*resized(scale_factor=1.7, mode="bicubic"), [IMAGE]),
    "bilinear antialias": (*resized((5, 11), mode="bilinear", antialias=True), [IMAGE]),
    "bicubic antialias": (*resized((5, 11), mode="bicubic", antialias=True), [IMAGE]),
    "linear": (*resized(11, mode="linear"), [IMAGE[0]]),
    "trilinear": (*resized((3, 11, 5), mode="trilinear"), [IMAGE[None]]),
    "paste_masks": (
        lambda masks, boxes: paste_masks(masks, boxes, (12, 10)),
        lambda masks, boxes: paste_masks_in_image(masks[:, None], boxes, (12, 10))[:, 0],
        [MASKS, BOXES],
    ),
    "roi_align": (*pooled((2, 3), sampling_ratio=2), [IMAGE, ROIS]),
    "roi_align adaptive": (*pooled((2, 3), aligned=True), [IMAGE, ROIS]),
}


def assert_right(title, output):
    """As near to torch in float64 as the rule of the proof demands."""
    _, theirs, arguments = OPS[title]
    given = [torch.from_numpy(value).double() for value in arguments]
    assert_near([output], lambda: [theirs(*given)], "float32")


RUN = """
import sys
import numpy as np
import tensorflow as tf

model = tf.saved_model.load("model")
for name in np.load("names.npy"):
    saved = np.load(f"{name}.npz")
    arguments = [tf.constant(saved[f"argument{i}"]) for i in range(len(saved.files))]
    np.save(f"{name}.npy", getattr(model, str(name))(*arguments))
assert "tf_models" not in sys.modules
print("all computed")
"""


def check_saved_model(folder, titles):
    """Every size unknown when it is saved."""
    model = tf.Module()
    names = {title: title.replace(" ", "_").replace("-", "_") for title in titles}
    for title, name in names.items():
        function, _, arguments = OPS[title]
        shapes = [value.shape if title == "affine_grid" else [None] * value.ndim for value in arguments]
        specs = [tf.TensorSpec(shape, tf.float32) for shape in shapes]
        setattr(model, name, tf.function(function, input_signature=specs, autograph=False))
        np.savez(folder / f"{name}.npz", **{f"argument{i}": value for i, value in enumerate(arguments)})
    np.save(folder / "names.npy", list(names.values()))
    tf.saved_model.save(model, str(folder / "model"))
    done = subprocess.run([sys.executable, "-c", RUN], cwd=folder, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "all computed", done.stderr[-2000:]
    for title, name in names.items():
        assert_right(title, np.load(folder / f"{name}.npy"))


def test_saved_model_runs_in_a_fresh_process(tmp_path):
    check_saved_model(tmp_path, ["affine_grid", "bicubic antialias", "paste_masks", "roi_align adaptive"])


@pytest.mark.slow
def test_saved_model_of_every_op(tmp_path):
    check_saved_model(tmp_path, OPS)


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated:UserWarning")
@pytest.mark.parametrize("name", [name for name in OPS if name != "paste_masks"])  # It computes in float64.
def test_tflite(name):
    """Static shapes, built-in ops only."""
    function, _, arguments = OPS[name]
    specs = [tf.TensorSpec(value.shape, tf.float32) for value in arguments]
    with jit(False):
        concrete = tf.function(function, autograph=False).get_concrete_function(*specs)
        flat = tf.lite.TFLiteConverter.from_concrete_functions([concrete]).convert()
    interpreter = tf.lite.Interpreter(model_content=flat)
    interpreter.allocate_tensors()
    for detail, value in zip(interpreter.get_input_details(), arguments, strict=True):
        interpreter.set_tensor(detail["index"], value)
    interpreter.invoke()
    assert_right(name, interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
