"""A checkpoint of SAM ViT-H's size through plan, layout and file: time against `cp`, memory, and bytes read.

    python -m benchmarks.streaming [--keep FOLDER] [--rounds 3]

Writes a seeded checkpoint of the 594 official tensors (2.5 GB), then measures in child processes, alternating with a
warm `cp` of the file: `converter.convert` with the lossless proof (`convert`), its parts, which are plan and file
(`write`) and plan and proof (`lossless`), and plan and file of the mask decoder out of the same checkpoint (`decoder`).
Peak memory is the child's above what it had after its imports, TensorFlow's included.
"""

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

MB = 1e6


def child(task: str, checkpoint: str, output: str) -> None:
    """One measured task, in a process of its own; prints a line of JSON."""
    import keras  # noqa: F401

    import converter
    from converter.checkpoints.checkpoint import Checkpoint
    from converter.files.weights_file import sign, write
    from converter.pairs.registry import get
    from converter.planning.choosing import find_reading
    from converter.planning.plan import make_plan
    from converter.proof.lossless import lossless

    pair = get("sam_decoder" if task == "decoder" else "sam_vit_h")
    imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start_bytes = _bytes_read()
    began = time.perf_counter()
    if task == "convert":
        needed = converter.convert(pair.name, checkpoint, output, "lossless", overwrite=True).nbytes
    else:
        with Checkpoint(checkpoint) as source:
            plan = make_plan(source, find_reading(source, pair.name, {}))
            if task == "lossless":
                assert lossless(Path(output), plan, source)
            else:
                written = write(Path(output), plan.steps, plan.layout, source)
                sign(Path(output), {}, written.digests)
            needed = sum(step.nbytes for step in plan.steps)
    ended = time.perf_counter()
    print(
        json.dumps(
            {
                "seconds": ended - began,
                "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - imported,
                "read": _bytes_read() - start_bytes,
                "needed": needed,
            }
        )
    )


def _bytes_read() -> int:
    """Bytes this process has asked the system to read."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("rchar:"):
            return int(line.split()[1])
    return 0


def _run(task: str, checkpoint: Path, output: Path) -> dict[str, float]:
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, __file__, "--child", task, str(checkpoint), str(output)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def _cp(checkpoint: Path, copy: Path) -> float:
    copy.unlink(missing_ok=True)
    began = time.perf_counter()
    subprocess.run(["cp", str(checkpoint), str(copy)], check=True)
    seconds = time.perf_counter() - began
    copy.unlink()
    return seconds


@click.command()
@click.option("--keep", type=click.Path(path_type=Path), help="Folder for the checkpoint, kept for the next run.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--child", "child_task", nargs=3, type=str, hidden=True)
def main(keep: Path | None, rounds: int, child_task: tuple[str, str, str] | None) -> None:
    if child_task:
        child(*child_task)
        return
    folder = keep or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, output = folder / "sam_vit_h.pth", folder / "out.weights.h5"
    if not checkpoint.exists():
        subprocess.run(
            [sys.executable, "-m", "torch_refs.sam.seeded_checkpoint", "vit_h", str(checkpoint)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    _cp(checkpoint, folder / "copy")  # warms the page cache
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(rounds):
        for task in ("convert", "write", "lossless", "decoder"):
            cp = _cp(checkpoint, folder / "copy")
            target = output if task != "decoder" else folder / "decoder.weights.h5"
            measured = _run(task, checkpoint, target)
            found.setdefault(task, []).append({**measured, "cp": cp, "ratio": measured["seconds"] / cp})
    print(f"checkpoint {checkpoint.stat().st_size / 1e9:.2f} GB; load average {os.getloadavg()[0]:.1f}\n")
    print("| task | seconds | warm cp | ratio (median, best) | peak above imports | bytes read / needed |")
    print("|---|---|---|---|---|---|")
    for task, rows in found.items():
        ratios = [row["ratio"] for row in rows]
        print(
            f"| {task} | {statistics.median(row['seconds'] for row in rows):.2f} "
            f"| {statistics.median(row['cp'] for row in rows):.2f} "
            f"| {statistics.median(ratios):.2f}, {min(ratios):.2f} "
            f"| {max(row['peak'] for row in rows) / MB:.0f} MB "
            f"| {rows[-1]['read'] / MB:.0f} / {rows[-1]['needed'] / MB:.0f} MB |"
        )
    if keep is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
