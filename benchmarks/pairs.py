"""Every pair beside its torch reference: `python -m benchmarks.pairs` prints a markdown table.

Forward pass and training step (outputs, and gradients to inputs and weights) of models with the same sizes, in one
process on two threads. Every round runs each contender once, one after another, so that all see the same machine; the
figures are the least of the rounds, as other load only ever adds.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

LEVELS = ((100, 134), (50, 67), (25, 34), (13, 17))
PIXELS = sum(height * width for height, width in LEVELS)


@dataclass(frozen=True)
class Case:
    """A pair at a size: its configuration, its inputs by torch's names, and the ratios to reach.

    `inputs` maps names to shapes, channels last, of which those in `images` are channels first in torch; or to arrays.
    """

    pair: str
    config: dict[str, Any]
    inputs: Callable[[np.random.Generator], dict[str, np.ndarray]]
    images: frozenset[str]
    target: float | None


def image(*shape: int) -> Callable[[np.random.Generator], dict[str, np.ndarray]]:
    """A single input `x`, channels last."""
    return lambda rng: {"x": rng.standard_normal(shape, dtype=np.float32)}


def encoder(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Every pixel of four feature maps asks around itself."""
    centres = [
        np.stack(np.meshgrid((np.arange(w) + 0.5) / w, (np.arange(h) + 0.5) / h), -1).reshape(-1, 2) for h, w in LEVELS
    ]
    reference = np.concatenate(centres)[None, :, None].repeat(len(LEVELS), 2).astype(np.float32)  # (1, S, L, 2)
    maps = rng.standard_normal((1, PIXELS, 256), dtype=np.float32)
    return {
        "query": maps,
        "reference_points": reference,
        "input_flatten": maps,
        "input_spatial_shapes": np.array(LEVELS),
    }


_DCN = {"in_channels": 64, "out_channels": 64, "padding": 1}
_IMAGE = frozenset({"x"})

CASES = {
    "deform_conv2d (2,64,64,64) 3x3": Case("deform_conv2d", _DCN, image(2, 64, 64, 64), _IMAGE, 0.35),
    "deform_conv2d v1 (2,64,64,64) 3x3": Case(
        "deform_conv2d", _DCN | {"modulated": False}, image(2, 64, 64, 64), _IMAGE, 0.35
    ),
    "dcn_v2 (1,40,40,256) 3x3": Case(
        "dcn_v2", {"in_channels": 256, "out_channels": 256, "padding": 1}, image(1, 40, 40, 256), _IMAGE, 0.35
    ),
    "ms_deform_attn, encoder": Case("ms_deform_attn", {}, encoder, frozenset(), 0.35),
    "deformable_attention_1d (1,1024,128)": Case(
        "deformable_attention_1d", {"dim": 128}, image(1, 1024, 128), _IMAGE, None
    ),
    "deformable_attention_2d (1,32,32,512)": Case(
        "deformable_attention_2d", {"dim": 512}, image(1, 32, 32, 512), _IMAGE, 0.5
    ),
    "deformable_attention_3d (1,8,16,16,128)": Case(
        "deformable_attention_3d", {"dim": 128}, image(1, 8, 16, 16, 128), _IMAGE, None
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--output", type=Path, help="write the table there as well")
    arguments = parser.parse_args()

    import torch
    import torchvision  # noqa: F401  before TensorFlow: the other order aborts the process

    torch.set_num_threads(arguments.threads)
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
    tf.config.threading.set_inter_op_parallelism_threads(arguments.threads)
    lines = [
        f"milliseconds, {arguments.threads} threads, least of {arguments.rounds} rounds",
        "",
        "| pair | pass | torch | TensorFlow | ratio | at most |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    for name, case in CASES.items():
        if arguments.only in name:
            lines += rows(name, case, arguments.rounds)
            print("\n".join(lines[-2:]), flush=True)
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n")


def rows(name: str, case: Case, rounds: int) -> list[str]:
    arrays = case.inputs(np.random.default_rng(0))
    calls = {"torch": torch_calls(case, arrays), "tf": tf_calls(case, arrays)}
    made = []
    for index, what in enumerate(("forward", "training step")):
        best = least({side: pair[index] for side, pair in calls.items()}, rounds)
        ratio = best["tf"] / best["torch"]
        target = "" if case.target is None else f"{case.target:.2f}"
        missed = " **missed**" if case.target is not None and ratio > case.target else ""
        made.append(
            f"| {name} | {what} | {best['torch'] * 1e3:.1f} | {best['tf'] * 1e3:.1f} | {ratio:.2f}{missed} | {target} |"
        )
    return made


def least(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Seconds of the fastest call of each, taken in turns; two rounds warm up."""
    best = dict.fromkeys(calls, float("inf"))
    for turn in range(rounds + 2):
        for side, call in calls.items():
            began = time.perf_counter()
            call()
            if turn > 1:
                best[side] = min(best[side], time.perf_counter() - began)
    return best


def torch_calls(case: Case, arrays: dict[str, np.ndarray]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    import torch

    import torch_refs

    torch.manual_seed(0)
    model = torch_refs.create(case.pair, **case.config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "offset" in name and parameter.ndim > 1:
                parameter.normal_(0, 0.02)  # offsets of a few pixels
    tensors = {
        name: torch.from_numpy(np.ascontiguousarray(np.moveaxis(value, -1, 1)) if name in case.images else value)
        for name, value in arrays.items()
    }
    leaves = {name: t.clone().requires_grad_() if t.is_floating_point() else t for name, t in tensors.items()}
    wanted = [leaf for leaf in leaves.values() if leaf.is_floating_point()] + list(model.parameters())

    def forward() -> Any:
        with torch.no_grad():
            return model(**tensors)

    return forward, lambda: torch.autograd.grad(model(**leaves).sum(), wanted)


def tf_calls(case: Case, arrays: dict[str, np.ndarray]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    import tensorflow as tf

    import tf_models

    model = tf_models.create(case.pair, **case.config)
    rng = np.random.default_rng(0)
    for variable in model.variables:
        if "offset" in variable.path and len(variable.shape) > 1:
            variable.assign(rng.normal(0, 0.02, variable.shape))
    fixed = {name: value for name, value in arrays.items() if value.dtype.kind != "f"}
    tensors = {name: tf.constant(value) for name, value in arrays.items() if name not in fixed}

    @tf.function
    def forward(**given: Any) -> Any:
        return model(*({**given, **fixed}[name] for name in arrays))

    @tf.function
    def step(**given: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(list(given.values()))
            output = model(*({**given, **fixed}[name] for name in arrays))
            loss = tf.reduce_sum(output)
        return tape.gradient(loss, [*given.values(), *model.trainable_variables])

    return lambda: forward(**tensors), lambda: step(**tensors)


if __name__ == "__main__":
    main()
