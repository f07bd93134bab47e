"""SAM's image encoder (ViT-B, 1024 x 1024) on this CPU: latency and memory of TensorFlow against segment-anything.

    python -m benchmarks.sam_encoder [--rounds 3] [--variant vit_b]

Each side runs in a child process of its own with the same seeded weights and image. The rounds alternate between them,
so that other load of the machine falls on both; the ratio is of the medians. Memory is the peak resident memory of all
calls, the first included, above what the process held with the model loaded. Both have the same number of threads (the
variable THREADS, or all cores).
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np

ROOT = Path(__file__).parent.parent
THREADS = int(os.environ.get("THREADS", os.cpu_count() or 1))
SIDES = ("torch", "tensorflow", "tensorflow, jit_compile")


def memory(field: str) -> float:
    """A line of this process's status in MB: VmRSS, or VmHWM, the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(field))


def image() -> np.ndarray:
    """(1, 1024, 1024, 3), normalised."""
    return np.random.default_rng(0).standard_normal((1, 1024, 1024, 3), dtype=np.float32)


def of_torch(variant: str) -> Callable[[], Any]:
    """segment-anything's image encoder."""
    import torch
    from segment_anything import sam_model_registry

    from torch_refs.sam.seeded_checkpoint import seeded_tensor

    torch.set_num_threads(THREADS)
    encoder = sam_model_registry[variant]().image_encoder.eval()
    state = encoder.state_dict()
    encoder.load_state_dict({name: seeded_tensor(f"image_encoder.{name}", tuple(t.shape)) for name, t in state.items()})
    pixels = torch.from_numpy(image()).permute(0, 3, 1, 2).contiguous()

    def run() -> Any:
        with torch.inference_mode():
            return encoder(pixels).permute(0, 2, 3, 1).numpy()

    return run


def of_tensorflow(variant: str, jit_compile: bool) -> Callable[[], Any]:
    """The Keras model, each variable filled through the pair's mapping."""
    # torch with all that it loads goes before TensorFlow: the other order aborts the process.
    import torchvision  # noqa: F401

    from torch_refs.sam.seeded_checkpoint import official_shapes, seeded_tensor

    import tensorflow as tf  # isort: skip
    from converter.pairs.registry import get
    from tests.support.carrying import twin

    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    scope = "image_encoder."
    shapes = {name[len(scope) :]: shape for name, shape in official_shapes(variant).items() if name.startswith(scope)}
    pair = get("sam_image_encoder")
    config = pair.configure(shapes, pair.parse_options({}))
    model = twin(pair.name, config, {name: seeded_tensor(scope + name, shape) for name, shape in shapes.items()})
    function, pixels = tf.function(model, jit_compile=jit_compile), tf.constant(image())
    return lambda: function(pixels).numpy()


def child(side: str, variant: str, output: str) -> None:
    """Answer each line of standard input with the seconds of one call and the peak in MB so far."""
    run = of_torch(variant) if side == "torch" else of_tensorflow(variant, side.endswith("jit_compile"))
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
    loaded = memory("VmRSS")
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        result = run()
        seconds = time.perf_counter() - began
        np.save(output, result)
        print(seconds, memory("VmHWM") - loaded, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variant", choices=("vit_b", "vit_l", "vit_h"), default="vit_b")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES[:2])
    parser.add_argument("--child", nargs=2, metavar=("SIDE", "OUTPUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child[0], arguments.variant, arguments.child[1])
        return

    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        outputs = {side: Path(folder, f"{index}.npy") for index, side in enumerate(arguments.sides)}
        children: dict[str, Any] = {}
        for side, output in outputs.items():
            command = [sys.executable, __file__, "--variant", arguments.variant, "--child", side, str(output)]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            children[side] = subprocess.Popen(command, env=environment, **pipes)
            assert children[side].stdout.readline() == "ready\n", side

        def run(side: str) -> tuple[float, float]:
            process = children[side]
            process.stdin.write("\n")
            process.stdin.flush()
            seconds, peak = process.stdout.readline().split()
            return float(seconds), float(peak)

        first = {side: run(side)[0] for side in children}
        rounds = [{side: run(side) for side in children} for _ in range(arguments.rounds)]
        for process in children.values():
            process.communicate()
        results = {side: np.load(output).astype(np.float64) for side, output in outputs.items()}

    truth = results[arguments.sides[0]]
    median = {side: statistics.median(one[side][0] for one in rounds) for side in outputs}
    print(f"{arguments.variant}, {THREADS} threads on {os.cpu_count()} cores, {arguments.rounds} rounds\n")
    print("| side | first s | median s | least s | ratio of medians | peak above loaded MB | difference |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for side in outputs:
        print(
            f"| {side} | {first[side]:.2f} | {median[side]:.2f} | {min(one[side][0] for one in rounds):.2f} "
            f"| {median[side] / median[arguments.sides[0]]:.3f} | {rounds[-1][side][1]:.0f} "
            f"| {np.abs(results[side] - truth).max():.1e} |"
        )
    print(f"\nstandard deviation of the output {truth.std():.2f}; load averages {os.getloadavg()}")


if __name__ == "__main__":
    main()
