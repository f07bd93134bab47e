"""Latency of the SAM mask decoder on this CPU: TensorFlow against the torch reference, same weights and inputs.

    python -m benchmarks.decoder_latency [rounds with 1 prompt] [rounds with 64 prompts]

Each round runs every contender once, one after another, so that other load of the machine falls on all of them.
Embeddings are 64 x 64, a prompt is one click (N = 2 tokens), and dense embeddings differ from prompt to prompt.
torch runs in inference mode; both frameworks have the same number of threads (the variable THREADS, or all cores).
The least CPU time is given too: with THREADS=1 it is nearly blind to what else the machine does.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import torch
from segment_anything.modeling import MaskDecoder as UpstreamDecoder
from segment_anything.modeling import TwoWayTransformer

import torch_refs
from torch_refs.sam.seeded_checkpoint import seeded_tensor

# TensorFlow after torch: the other order aborts the process in a library that torchvision loads.
import tensorflow as tf  # isort: skip
from converter.pairs.registry import get  # isort: skip
from tests.support.carrying import twin  # isort: skip

THREADS = int(os.environ.get("THREADS", os.cpu_count() or 1))
Decoder = Callable[..., Any]


def torch_decoders() -> tuple[torch.nn.Module, torch.nn.Module]:
    """Our reference and segment-anything's decoder, with the same seeded weights."""
    transformer = TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    upstream = UpstreamDecoder(transformer_dim=256, transformer=transformer).eval()
    reference = torch_refs.create("sam_decoder")
    state = reference.state_dict()
    weights = {name: seeded_tensor(f"mask_decoder.{name}", tuple(value.shape)) for name, value in state.items()}
    for decoder in (reference, upstream):
        decoder.load_state_dict(weights)
    return reference, upstream


def contenders(prompts: int) -> dict[str, Callable[[], Any]]:
    rng = torch.Generator().manual_seed(0)
    shapes = [(1, 256, 64, 64), (1, 256, 64, 64), (prompts, 2, 256), (prompts, 256, 64, 64)]
    args = [torch.randn(shape, generator=rng) for shape in shapes]
    tf_args = [tf.constant((x.movedim(1, -1) if x.ndim == 4 else x).contiguous().numpy()) for x in args]

    reference, upstream = torch_decoders()
    pair, state = get("sam_decoder"), reference.state_dict()
    config = pair.configure({name: tuple(one.shape) for name, one in state.items()}, pair.parse_options({}))
    model = twin(pair.name, config, state)
    plain, jitted = tf.function(model), tf.function(model, jit_compile=True)

    def of_torch(decoder: Decoder) -> Callable[[], Any]:
        return lambda: decoder(*args)[0].movedim(1, -1).numpy()

    def of_tensorflow(decoder: Decoder) -> Callable[[], Any]:
        return lambda: decoder(*tf_args)[0].numpy()

    return {
        "torch reference": of_torch(reference),
        "segment-anything": of_torch(lambda *args: upstream(*args, multimask_output=True)),
        "TensorFlow, eager": of_tensorflow(model),
        "TensorFlow, tf.function": of_tensorflow(plain),
        "TensorFlow, jit_compile": of_tensorflow(jitted),
    }


def measure(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, tuple[float, float, float]]:
    """Median and least milliseconds of each run and its least CPU time.

    Before, each is called once to warm up, and its masks must agree with those of the first.
    """
    wall: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        truth = next(iter(runs.values()))()
        for name, run in runs.items():
            error = abs(run() - truth).max()
            assert error < 1e-4, f"{name} differs from the reference by {error}"
        for _ in range(rounds):
            for name, run in runs.items():
                start, cpu_start = time.perf_counter(), time.process_time()
                run()
                wall[name].append(1e3 * (time.perf_counter() - start))
                cpu[name].append(1e3 * (time.process_time() - cpu_start))
    return {name: (statistics.median(wall[name]), min(wall[name]), min(cpu[name])) for name in runs}


def main() -> None:
    torch.set_num_threads(THREADS)
    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    rounds = [int(argument) for argument in sys.argv[1:3]]
    rounds += [21, 3][len(rounds) :]
    print(f"torch {torch.__version__}, tensorflow {tf.__version__}, {THREADS} threads on {os.cpu_count()} cores\n")
    print("| prompts | decoder | median ms | min ms | CPU ms | median ratio | min ratio | CPU ratio |")
    print("|---:|---|---:|---:|---:|---:|---:|---:|")
    for prompts, count in zip((1, 64), rounds, strict=True):
        if not count:
            continue
        results = measure(contenders(prompts), count)
        base = results["torch reference"]
        for name, times in results.items():
            numbers = [f"{x:.1f}" for x in times] + [f"{x / y:.3f}" for x, y in zip(times, base, strict=True)]
            print(f"| {prompts} | {name} | {' | '.join(numbers)} |", flush=True)
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    print(f"\n{rounds[0]} and {rounds[1]} rounds; load averages at the end: {load}")


if __name__ == "__main__":
    main()
