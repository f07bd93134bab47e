"""Deformable attention beside the torch reference: `python -m benchmarks.deformable_attention` prints a table.

The two sides take turns, and the figures are the least of the rounds, as other load only ever adds. A training step is
forward and backward to the input and every weight. TensorFlow runs inside `tf.function`, without XLA.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np

# Case -> (pair, arguments, input channels last, at most TF/torch).
CASES = {
    "1d (1,1024,128)": ("deformable_attention_1d", {"dim": 128}, (1, 1024, 128), 0.5),
    "2d (1,32,32,512)": ("deformable_attention_2d", {"dim": 512}, (1, 32, 32, 512), 0.5),
    "3d (1,8,16,16,128)": ("deformable_attention_3d", {"dim": 128}, (1, 8, 16, 16, 128), 0.5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    arguments = parser.parse_args()
    import torch
    import torchvision  # noqa: F401  before TensorFlow: the other order aborts the process

    torch.set_num_threads(arguments.threads)
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
    tf.config.threading.set_inter_op_parallelism_threads(arguments.threads)
    print(f"| case, {arguments.threads} threads | direction | torch, ms | TF, ms | TF/torch | at most |")
    print("|---|---|---|---|---|---|")
    for case in CASES:
        if arguments.only in case:
            measure(case, arguments.rounds)


def measure(case: str, rounds: int) -> None:
    """Time both directions of one case, side by side."""
    *_, target = CASES[case]
    sides = {"torch": torch_calls(case), "tf": tf_calls(case)}
    for index, direction in enumerate(("forward", "training step")):
        times: dict[str, list[float]] = {side: [] for side in sides}
        for calls in sides.values():
            calls[index]()
        for _ in range(rounds):
            for side, calls in sides.items():
                start = time.perf_counter()
                calls[index]()
                times[side].append(time.perf_counter() - start)
        best = {side: min(values) * 1e3 for side, values in times.items()}
        ratio = best["tf"] / best["torch"]
        met = "" if ratio <= target else " **missed**"
        print(
            f"| {case} | {direction} | {best['torch']:.1f} | {best['tf']:.1f} | {ratio:.2f}{met} | {target} |",
            flush=True,
        )


def torch_calls(case: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    import torch

    import torch_refs

    pair, config, shape, _ = CASES[case]
    module = torch_refs.create(pair, **config)
    x = torch.randn(shape).movedim(-1, 1).contiguous()

    def forward() -> Any:
        with torch.no_grad():
            return module(x)

    def step() -> Any:
        module.zero_grad()
        leaf = x.clone().requires_grad_()
        module(leaf).sum().backward()
        return leaf.grad

    return forward, step


def tf_calls(case: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    import tensorflow as tf

    import tf_models

    pair, config, shape, _ = CASES[case]
    model = tf_models.create(pair, **config)
    x = tf.constant(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))
    forward = tf.function(model)

    @tf.function
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(model(x))
        return tape.gradient(loss, [x, *(variable.value for variable in model.trainable_variables)])

    return lambda: forward(x), lambda: step(x)


if __name__ == "__main__":
    main()
