"""Latency of `predict` after `set_image`: TensorFlow's predictor against segment-anything's, same weights and picture.

    python -m benchmarks.sam_predict [rounds]

The image encoder is small, because it does not run in `predict`; the embedding is 64 x 64 as in every published SAM. A
call takes prompts in pixels and returns masks of the picture's size as numpy arrays. Each round runs both sides once,
one after the other, so that other load of the machine falls on both; both have the same number of threads (the variable
THREADS, or all cores).
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import torch
from segment_anything import SamPredictor
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from torch_refs.sam.seeded_checkpoint import seeded_tensor

# TensorFlow after torch: the other order aborts the process in a library that torchvision loads.
import tensorflow as tf  # isort: skip
from converter.pairs.registry import get  # isort: skip
from tests.support.carrying import twin  # isort: skip
from tf_models.sam import Predictor  # isort: skip

THREADS = int(os.environ.get("THREADS", os.cpu_count() or 1))
ENCODER = {"embed_dim": 32, "depth": 1, "num_heads": 2, "window_size": 14}
SIZES = [(480, 640), (1200, 1800), (3000, 4000)]


def official() -> Sam:
    sam = Sam(
        ImageEncoderViT(**ENCODER, mlp_ratio=2, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6), use_rel_pos=True),
        PromptEncoder(256, (64, 64), (1024, 1024), 16),
        MaskDecoder(transformer_dim=256, transformer=TwoWayTransformer(2, 256, 8, 2048)),
    )
    sam.load_state_dict({name: seeded_tensor(name, tuple(value.shape)) for name, value in sam.state_dict().items()})
    return sam.eval()


def prompts(height: int, width: int) -> dict[str, dict[str, np.ndarray]]:
    point, label = np.array([[0.4 * width, 0.3 * height]]), np.array([1])
    box = np.array([0.1 * width, 0.2 * height, 0.8 * width, 0.9 * height])
    return {
        "1 point": {"point_coords": point, "point_labels": label},
        "1 box": {"box": box},
        "5 points and a box": {"point_coords": np.repeat(point, 5, axis=0), "point_labels": np.ones(5), "box": box},
    }


def measure(sides: list[Callable[[], tuple]], rounds: int) -> list[list[float]]:
    """Milliseconds of each side in each round; both are warmed up, and must give the same masks, before."""
    masks = [[side()[0] for _ in range(2)][1] for side in sides]
    assert (masks[0] != masks[1]).mean() < 1e-4
    times: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds):
        for side, taken in zip(sides, times, strict=True):
            start = time.perf_counter()
            side()
            taken.append(1e3 * (time.perf_counter() - start))
    return times


def main() -> None:
    torch.set_num_threads(THREADS)
    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    sam = official()
    pair, state = get("sam"), sam.state_dict()
    config = pair.configure({name: tuple(one.shape) for name, one in state.items()}, pair.parse_options({}))
    model = twin(pair.name, config, state)
    theirs, ours = SamPredictor(sam), Predictor(model)
    print(f"torch {torch.__version__}, tensorflow {tf.__version__}, {THREADS} threads on {os.cpu_count()} cores\n")
    print("| picture | prompt | torch ms, median (min) | TensorFlow ms, median (min) | ratio of medians (of minima) |")
    print("|---|---|---:|---:|---:|")
    for height, width in SIZES:
        image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        for predictor in (theirs, ours):
            predictor.set_image(image)
        for name, given in prompts(height, width).items():
            times = measure([partial(p.predict, **given) for p in (theirs, ours)], rounds)
            (a, a_min), (b, b_min) = ((statistics.median(taken), min(taken)) for taken in times)
            print(
                f"| {width} x {height} | {name} | {a:.1f} ({a_min:.1f}) | {b:.1f} ({b_min:.1f}) "
                f"| {b / a:.2f} ({b_min / a_min:.2f}) |",
                flush=True,
            )
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    print(f"\n{rounds} rounds; load averages at the end: {load}")


if __name__ == "__main__":
    main()
