"""The sampling ops in files that run without this package: SavedModel and TensorFlow Lite."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import torch
import torch.nn.functional as F
import torchvision

from tests.support import defined
from tests.support.judging import assert_near
from tf_models.ops import deform_conv2d, deform_conv3d, grid_sample, jit, ms_deform_attn

SHAPES = ((5, 4), (3, 2))


def uniform(*shape, low=-1.3, high=1.3):
    return np.random.default_rng(sum(shape)).uniform(low, high, shape).astype(np.float32)


def sampler(rank, **options):
    x = uniform(2, 5, 6, 3) if rank == 2 else uniform(2, 3, 5, 6, 3)
    grid = uniform(2, 4, 7, 2) if rank == 2 else uniform(2, 2, 4, 7, 3)
    theirs = lambda x, g: F.grid_sample(x.movedim(-1, 1), g, **options).movedim(1, -1)  # noqa: E731
    return (lambda x, g: grid_sample(x, g, **options)), theirs, [x, grid]


def convolved(x, offset, kernel, bias=None, mask=None, **options):
    mask = None if mask is None else mask.movedim(-1, 1)
    weight = kernel.permute(3, 2, 0, 1)
    output = torchvision.ops.deform_conv2d(x.movedim(-1, 1), offset.movedim(-1, 1), weight, bias, mask=mask, **options)
    return output.movedim(1, -1)


def convolved_volume(x, offset, kernel, mask):
    """Without stride, padding and groups, as samples of the volume: torch has no such convolution."""
    out = offset.shape[1:-1]
    taps = torch.cartesian_prod(*map(torch.arange, kernel.shape[:3]))
    starts = torch.stack(torch.meshgrid(*map(torch.arange, out), indexing="ij"), -1)
    at = starts[:, :, :, None] + taps + offset.unflatten(-1, (len(taps), 3))  # (N, D, H, W, K, zyx)
    grid = ((2 * at + 1) / torch.tensor(x.shape[1:4]) - 1).flip(-1).flatten(3, 4)
    samples = F.grid_sample(x.movedim(-1, 1), grid, align_corners=False).movedim(1, -1).view(*mask.shape, -1)
    return torch.einsum("ndhwkc,kcf->ndhwf", samples * mask[..., None], kernel.flatten(0, 2))


GRID_SAMPLE = {
    f"grid_sample {rank}d {mode} {padding} {align}": sampler(rank, mode=mode, padding_mode=padding, align_corners=align)
    for rank, modes in ((2, ("bilinear", "nearest", "bicubic")), (3, ("bilinear", "nearest")))
    for mode in modes
    for padding in ("zeros", "border", "reflection")
    for align in (False, True)
}
# name -> function, torch's, and their example arguments
OTHERS = {
    "deform_conv2d": (
        lambda x, o, k, m: deform_conv2d(x, o, k, padding=1, mask=m),
        lambda x, o, k, m: convolved(x, o, k, mask=m, padding=1),
        [uniform(2, 6, 7, 4), uniform(2, 6, 7, 18), uniform(3, 3, 4, 5), uniform(2, 6, 7, 9, low=0)],
    ),
    "deform_conv2d v1, groups": (
        lambda x, o, k, b: deform_conv2d(x, o, k, b, stride=2, dilation=(1, 2)),
        lambda x, o, k, b: convolved(x, o, k, b, stride=2, dilation=(1, 2)),
        [uniform(2, 7, 9, 4), uniform(2, 3, 3, 36), uniform(3, 3, 2, 6), uniform(6)],
    ),
    "deform_conv3d": (
        lambda x, o, k, m: deform_conv3d(x, o, k, mask=m),
        convolved_volume,
        [uniform(2, 3, 6, 7, 4), uniform(2, 2, 5, 6, 24), uniform(2, 2, 2, 4, 5), uniform(2, 2, 5, 6, 8, low=0)],
    ),
    "ms_deform_attn": (
        lambda v, p, w: ms_deform_attn(v, SHAPES, p, w),
        defined.ms_deform_attn(SHAPES),
        [uniform(2, 26, 3, 4), uniform(2, 5, 3, 2, 4, 2, low=-0.2, high=1.2), uniform(2, 5, 3, 2, 4, low=0)],
    ),
}


def assert_right(name, output):
    """As near to torch in float64 as the rule of the proof demands."""
    _, theirs, arrays = (GRID_SAMPLE | OTHERS)[name]
    given = [torch.from_numpy(array).double() for array in arrays]
    assert_near([output], lambda: [theirs(*given)], "float32")


def static(function, arrays):
    specs = [tf.TensorSpec(array.shape, tf.float32, f"argument{index}") for index, array in enumerate(arrays)]
    return tf.function(function, input_signature=specs, autograph=False)


def test_saved_models_run_in_a_process_without_the_package(tmp_path, monkeypatch):
    # With the threshold at zero the compiled functions are part of the file, as for inputs of a usual size.
    cases = OTHERS | {name: GRID_SAMPLE[name] for name in list(GRID_SAMPLE)[::7]}
    module = tf.Module()
    for index, (function, _, arrays) in enumerate(cases.values()):
        monkeypatch.setattr("tf_models.ops.compiling.WORTHWHILE", 0 if index % 2 else 2**16)
        traced = static(function, arrays)
        setattr(module, f"case{index}", traced)
        traced.get_concrete_function()
        np.savez(tmp_path / f"{index}.npz", *arrays)
    # A batch that is not known.
    function, _, (x, grid) = cases["grid_sample 2d bilinear zeros False"]
    module.batches = tf.function(
        function,
        input_signature=[tf.TensorSpec((None, *array.shape[1:]), tf.float32) for array in (x, grid)],
        autograph=False,
    )
    tf.saved_model.save(module, str(tmp_path / "model"))

    script = f"""
import sys
import numpy as np
import tensorflow as tf

module = tf.saved_model.load("model")
for index in range({len(cases)}):
    arrays = np.load(f"{{index}}.npz").values()
    np.save(f"{{index}}.npy", getattr(module, f"case{{index}}")(*arrays))
for batch in (1, 3):
    assert module.batches(tf.ones((batch, 5, 6, 3)), tf.zeros((batch, 4, 7, 2))).shape == (batch, 4, 7, 3)
assert not any(name.split(".")[0] == "tf_models" for name in sys.modules)
"""
    # -I: no environment and no current folder on the path.
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for index, name in enumerate(cases):
        assert_right(name, np.load(tmp_path / f"{index}.npy"))


def lite(function, arrays):
    """Convert with built-in ops only, and run."""
    converter = tf.lite.TFLiteConverter.from_concrete_functions([static(function, arrays).get_concrete_function()])
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    interpreter = tf.lite.Interpreter(model_content=converter.convert())
    interpreter.allocate_tensors()
    for detail, array in zip(sorted(interpreter.get_input_details(), key=lambda d: d["name"]), arrays, strict=True):
        interpreter.set_tensor(detail["index"], array)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


# The interpreter announces its successor.
@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated.*")
@pytest.mark.parametrize("name", [*GRID_SAMPLE, *OTHERS])
def test_tensorflow_lite(name):
    function, _, arrays = (GRID_SAMPLE | OTHERS)[name]
    with jit(False):
        output = lite(function, arrays)
    assert_right(name, output)


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated.*")
@pytest.mark.parametrize("name", ["grid_sample 2d bilinear zeros False", "deform_conv2d", "ms_deform_attn"])
def test_tensorflow_lite_of_a_compiled_graph(name, monkeypatch):
    monkeypatch.setattr("tf_models.ops.compiling.WORTHWHILE", 0)
    function, _, arrays = (GRID_SAMPLE | OTHERS)[name]
    assert_right(name, lite(function, arrays))
