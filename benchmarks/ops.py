"""The sampling ops beside torch's: `python -m benchmarks.ops` prints a markdown table and draws a plot.

Every round of a case runs each contender once, one after another, so that all see the same machine. The figures are the
least of the rounds, as other load only ever adds, and a ratio is taken between figures of one run. Each number of
threads has a process of its own, since TensorFlow takes it at the start. Peak memory is what a fresh process adds to
what it held before the call.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

LEVELS = ((100, 134), (50, 67), (25, 34), (13, 17))
PIXELS = sum(height * width for height, width in LEVELS)

# Case -> (forward, forward + backward) at most, against torch contiguous.
TARGETS = {
    "grid_sample (1,64,64,256) to 64x64": (0.5, 0.7),
    "grid_sample (8,100,100,32) to 100x100": (0.5, 0.7),
    "grid_sample (16,80,80,32) to 300x4": (0.5, 0.7),
    "grid_sample (100,100,100,1) to 100x100": (1.0, None),
    "deform_conv2d v2 (2,64,64,64) 3x3": (0.3, 0.12),
    "deform_conv2d v2 (1,40,40,256) 3x3": (0.3, 0.12),
    "ms_deform_attn encoder": (0.12, 0.35),
    "ms_deform_attn decoder, Lq 300": (0.35, None),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15, help="rounds per case; a fifth of them for slow cases")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"), help="folder of ops.md and ops.png")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        task, *rest = arguments.child.split(",")
        result = measure(int(rest[0]), arguments.rounds, arguments.only) if task == "time" else peak(*rest)
        print(json.dumps(result))
        return

    rows = [row for threads in arguments.threads for row in child(f"time,{threads}", arguments)]
    memory = {}
    if arguments.only in "ms_deform_attn encoder":
        for direction in ("forward", "forward + backward"):
            memory[direction] = {side: child(f"peak,{side},{direction}", arguments) for side in ("torch", "tf")}
    report = table(rows, memory)
    print(report)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "ops.md").write_text(report + "\n")
    plot(rows, arguments.output / "ops.png")


def child(task: str, arguments: argparse.Namespace) -> Any:
    """Run this module on one task in a process of its own, and read the JSON of its last line."""
    command = [sys.executable, "-m", "benchmarks.ops", "--child", task]
    command += ["--rounds", str(arguments.rounds), "--only", arguments.only]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


# ---------------------------------------------------------------- what is measured


def inputs(case: str) -> list[np.ndarray]:
    """The arguments of a case, channels last."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    def uniform(*shape: int) -> np.ndarray:
        return rng.random(shape, dtype=np.float32)

    if case.startswith("grid_sample"):
        numbers = case.split("(")[1].replace(") to ", ",").replace("x", ",").split(",")
        n, h, w, c, ho, wo = map(int, numbers)
        return [normal(n, h, w, c), (uniform(n, ho, wo, 2) * 2 - 1) * np.float32(1.1)]
    if case.startswith("deform_conv2d"):
        n, h, w, c = map(int, case.split("(")[1].split(")")[0].split(","))
        return [normal(n, h, w, c), normal(n, h, w, 18) * 2, normal(3, 3, c, c) / 3, normal(c), uniform(n, h, w, 9)]
    if "encoder" in case:  # every pixel asks around itself
        centres = [
            np.stack(np.meshgrid((np.arange(w) + 0.5) / w, (np.arange(h) + 0.5) / h), -1).reshape(-1, 2)
            for h, w in LEVELS
        ]
        reference = np.concatenate(centres)[None, :, None, None, None]
        queries = PIXELS
    else:
        queries = 300
        reference = uniform(1, queries, 1, 1, 1, 2)
    spread = 3 / np.array([[w, h] for h, w in LEVELS])[:, None]  # (L, 1, 2), three pixels
    locations = (reference + normal(1, queries, 8, 4, 4, 2) * spread).astype(np.float32)
    weights = uniform(1, queries, 8, 4, 4)
    weights /= weights.sum((-2, -1), keepdims=True)
    return [normal(1, PIXELS, 8, 32), locations, weights]


def torch_side(case: str, channels_last: bool = False) -> tuple[Callable[..., Any], list[Any]]:
    """The torch function of a case, and its arguments: channels first, in one of the two memory formats."""
    import torch
    import torchvision

    def image(array: np.ndarray) -> Any:
        tensor = torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, 1)))
        return tensor.contiguous(memory_format=torch.channels_last) if channels_last else tensor

    if case.startswith("grid_sample"):
        image_, grid = inputs(case)
        return (
            lambda x, g: torch.nn.functional.grid_sample(x, g, align_corners=True),
            [image(image_), torch.from_numpy(grid)],
        )
    if case.startswith("deform_conv2d"):
        x, offset, kernel, bias, mask = inputs(case)
        weight = torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))
        arguments = [image(x), image(offset), weight, torch.from_numpy(bias), image(mask)]
        return lambda x, o, w, b, m: torchvision.ops.deform_conv2d(x, o, w, b, padding=1, mask=m), arguments
    return torch_ms_deform_attn, [torch.from_numpy(array) for array in inputs(case)]


def torch_ms_deform_attn(value: Any, locations: Any, weights: Any) -> Any:
    """Multi-scale deformable attention by one grid_sample per level, the published formulation without CUDA."""
    import torch

    n, _, heads, channels = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    samples = []
    for level, (height, width) in enumerate(LEVELS):
        start = sum(h * w for h, w in LEVELS[:level])
        maps = value[:, start : start + height * width].permute(0, 2, 3, 1)  # (N, M, D, H*W)
        maps = maps.reshape(n * heads, channels, height, width)
        grid = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)  # (N*M, Lq, P, 2)
        samples.append(torch.nn.functional.grid_sample(maps, grid, align_corners=False))  # (N*M, D, Lq, P)
    attention = weights.transpose(1, 2).reshape(n * heads, 1, queries, len(LEVELS) * points)
    output = (torch.stack(samples, -2).flatten(-2) * attention).sum(-1)  # (N*M, D, Lq)
    return output.view(n, heads * channels, queries).transpose(1, 2).contiguous()


def tf_side(case: str) -> tuple[Callable[..., Any], list[Any]]:
    import tensorflow as tf

    from tf_models import ops

    arguments = [tf.constant(array) for array in inputs(case)]
    if case.startswith("grid_sample"):
        return lambda x, g: ops.grid_sample(x, g, align_corners=True), arguments
    if case.startswith("deform_conv2d"):
        return lambda x, o, k, b, m: ops.deform_conv2d(x, o, k, b, padding=1, mask=m), arguments
    return lambda v, p, a: ops.ms_deform_attn(v, LEVELS, p, a), arguments


def seed_side(case: str) -> tuple[Callable[..., Any], list[Any]] | None:
    """What was there before, where it computes the same: samplers that gather_nd four corners."""
    import tensorflow as tf

    arguments = [tf.constant(array) for array in inputs(case)]

    def sample(image: Any, y: Any, x: Any) -> Any:
        """Bilinear samples (N, ...) -> (N, ..., C), zeros outside."""
        height, width = image.shape[1:3]
        y0, x0 = tf.floor(y), tf.floor(x)
        total = 0.0
        for yi, wy in ((y0, y0 + 1 - y), (y0 + 1, y - y0)):
            for xi, wx in ((x0, x0 + 1 - x), (x0 + 1, x - x0)):
                inside = (yi >= 0) & (yi <= height - 1) & (xi >= 0) & (xi <= width - 1)
                corner = tf.stack([tf.clip_by_value(yi, 0, height - 1), tf.clip_by_value(xi, 0, width - 1)], -1)
                pixels = tf.gather_nd(image, tf.cast(corner, tf.int32), batch_dims=1)
                total += (wy * wx)[..., None] * pixels * tf.cast(inside, tf.float32)[..., None]
        return total

    def grid_sample(image: Any, grid: Any) -> Any:
        height, width = image.shape[1:3]
        return sample(image, (grid[..., 1] + 1) / 2 * (height - 1), (grid[..., 0] + 1) / 2 * (width - 1))

    def deform_conv(image: Any, offset: Any, kernel: Any, bias: Any, mask: Any) -> Any:
        n, height, width, channels = image.shape
        ky, kx = np.meshgrid(range(-1, 2), range(-1, 2), indexing="ij")
        offset = tf.reshape(offset, (n, height, width, 9, 2))
        y = np.arange(height)[:, None, None] + ky.reshape(-1) + offset[..., 0]
        x = np.arange(width)[:, None] + kx.reshape(-1) + offset[..., 1]
        columns = tf.reshape(sample(image, y, x) * mask[..., None], (n, height, width, 9 * channels))
        return tf.nn.conv2d(columns, tf.reshape(kernel, (1, 1, 9 * channels, -1)), 1, "VALID") + bias

    if case.startswith("grid_sample"):
        return tf.function(grid_sample), arguments
    if case.startswith("deform_conv2d"):
        return tf.function(deform_conv), arguments
    return None  # it samples elsewhere: align_corners=True


# ---------------------------------------------------------------- how it is measured


def torch_calls(function: Callable[..., Any], arguments: list[Any]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    import torch

    leaves = [argument.detach().clone(memory_format=torch.preserve_format).requires_grad_() for argument in arguments]
    with torch.no_grad():
        upstream = torch.ones_like(function(*arguments))

    def forward() -> Any:
        with torch.no_grad():
            return function(*arguments)

    return forward, lambda: torch.autograd.grad(function(*leaves), leaves, upstream)


def tf_calls(function: Callable[..., Any], arguments: list[Any]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    import tensorflow as tf

    upstream = tf.ones_like(function(*arguments))

    def both() -> Any:
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            output = function(*arguments)
        return tape.gradient(output, arguments, upstream)

    return lambda: function(*arguments), both


def set_threads(threads: int) -> None:
    import torch
    import torchvision  # noqa: F401  before TensorFlow: the other order aborts the process

    torch.set_num_threads(threads)
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


def measure(threads: int, rounds: int, only: str) -> list[dict[str, Any]]:
    set_threads(threads)
    rows = []
    for case, targets in TARGETS.items():
        if only not in case:
            continue
        function, arguments = tf_side(case)
        first_calls = [timed(lambda: function(*arguments))]  # noqa: B023  called at once
        sides = {
            "torch contiguous": torch_calls(*torch_side(case)),
            "torch channels_last": torch_calls(*torch_side(case, channels_last=True)),
            "tf": tf_calls(function, arguments),
        }
        if "ms_deform_attn" in case:  # no images among the arguments
            del sides["torch channels_last"]
        seed = seed_side(case)
        if seed is not None:
            sides["seed"] = tf_calls(*seed)
        for index, direction in enumerate(("forward", "forward + backward")):
            warm = {side: timed(calls[index]) for side, calls in sides.items()}
            if index:
                first_calls.append(warm["tf"])
            count = rounds if warm["torch contiguous"] < 0.3 else max(3, rounds // 5)
            times: dict[str, list[float]] = {side: [] for side in sides}
            for _ in range(count):
                for side, calls in sides.items():
                    times[side].append(timed(calls[index]))
            row = {"case": case, "direction": direction, "threads": threads, "target": targets[index]}
            row |= {"first": first_calls[index], "times": {side: min(t) for side, t in times.items()}}
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    return rows


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def peak(side: str, direction: str) -> float:
    """MiB that the encoder case adds to the peak of a fresh process."""
    set_threads(2)
    case = "ms_deform_attn encoder"
    function, arguments = torch_side(case) if side == "torch" else tf_side(case)
    if side == "tf":  # the compiler's own memory, at a size of no weight
        small = [argument[:, :1000] if i else argument for i, argument in enumerate(arguments)]
        tf_calls(function, small)[1]()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    index = ("forward", "forward + backward").index(direction)
    if side == "tf":
        import tensorflow as tf

        def call() -> Any:
            if not index:
                return function(*arguments)
            with tf.GradientTape() as tape:
                tape.watch(arguments)
                output = function(*arguments)
            return tape.gradient(output, arguments)
    else:

        def call() -> Any:
            leaves = [argument.requires_grad_(bool(index)) for argument in arguments]
            output = function(*leaves)
            if index:
                output.sum().backward()
            return output

    call()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


# ---------------------------------------------------------------- how it is shown


def table(rows: list[dict[str, Any]], memory: dict[str, dict[str, float]]) -> str:
    lines = [
        "| case | direction | threads | torch contiguous, ms | TF, ms | TF/torch contiguous | at most "
        "| TF/torch channels_last | TF/seed | first call, s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        times = row["times"]

        def ratio(side: str, times: dict[str, float] = times) -> str:
            return f"{times['tf'] / times[side]:.3f}" if side in times else ""

        target = "" if row["target"] is None else f"{row['target']:.2f}"
        met = "" if row["target"] is None or times["tf"] <= row["target"] * times["torch contiguous"] else " **missed**"
        lines.append(
            f"| {row['case']} | {row['direction']} | {row['threads']} | {times['torch contiguous'] * 1e3:.2f} "
            f"| {times['tf'] * 1e3:.2f} | {ratio('torch contiguous')}{met} | {target} "
            f"| {ratio('torch channels_last')} | {ratio('seed')} | {row['first']:.2f} |"
        )
    if memory:
        lines += ["", "| peak memory, encoder | torch, MiB | TF, MiB | TF/torch |", "|---|---|---|---|"]
        lines += [
            f"| {direction} | {peaks['torch']:.0f} | {peaks['tf']:.0f} | {peaks['tf'] / peaks['torch']:.2f} |"
            for direction, peaks in memory.items()
        ]
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """One panel per direction: a bar of TF/torch per case and number of threads, and a mark where it should end."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    cases = list(dict.fromkeys(row["case"] for row in rows))
    threads = list(dict.fromkeys(row["threads"] for row in rows))
    figure, panels = pyplot.subplots(1, 2, figsize=(13, 1.2 + 0.55 * len(cases)), sharey=True, layout="constrained")
    for panel, direction in zip(panels, ("forward", "forward + backward"), strict=True):
        height = 0.8 / len(threads)
        for row in rows:
            if row["direction"] != direction:
                continue
            index = threads.index(row["threads"])
            y = cases.index(row["case"]) + (index - (len(threads) - 1) / 2) * height
            ratio = row["times"]["tf"] / row["times"]["torch contiguous"]
            panel.barh(y, ratio, height * 0.9, color=f"C{index}")
            panel.text(ratio, y, f" {ratio:.2f}", va="center", fontsize=8)
            if row["target"] is not None:
                panel.plot([row["target"]] * 2, [y - height / 2, y + height / 2], color="black")
        panel.axvline(1, color="grey", linestyle=":", linewidth=1)
        panel.set_title(direction)
        panel.set_xlabel("time, TensorFlow / torch contiguous")
        panel.set_xlim(0, 1.1 * panel.get_xlim()[1])
    panels[0].set_yticks(range(len(cases)), cases)
    panels[0].invert_yaxis()
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=f"C{i}") for i in range(len(threads))]
    handles.append(pyplot.Line2D([], [], color="black"))
    labels = [f"{n} thread{'s' if n > 1 else ''}" for n in threads] + ["at most"]
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
