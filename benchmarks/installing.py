"""What installing takes beside TensorFlow, and how soon the commands answer that need no framework.

    python -m benchmarks.installing [--keep FOLDER] [--rounds 5]

Sizes are those of the installed files of each package that pip brings for Weightbridge and not for TensorFlow, by what
the packages of this environment say they need. Times are of whole processes: `convert --help`, and
`weightbridge inspect` of a seeded checkpoint of SAM ViT-H (2.56 GB).
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import click
from packaging.requirements import Requirement

MB = 1e6


def needed(name: str, extras: tuple[str, ...] = ()) -> set[str]:
    """The installed packages that pip brings for this one, itself among them."""
    waiting, found = [(name, extra) for extra in ("", *extras)], set()
    while waiting:
        one = waiting.pop()
        try:
            about = distribution(one[0])
        except PackageNotFoundError:  # for another system, or an extra that is not installed
            continue
        if one not in found:
            found.add(one)
            for line in about.requires or ():
                need = Requirement(line)
                if need.marker is None or need.marker.evaluate({"extra": one[1]}):
                    waiting += [(need.name.lower().replace("_", "-"), extra) for extra in ("", *need.extras)]
    return {name for name, _ in found}


def size(name: str) -> int:
    """Bytes of a package's installed files."""
    files = (file.locate() for file in distribution(name).files or ())
    return sum(os.path.getsize(file) for file in files if os.path.isfile(file))


def added(extras: tuple[str, ...] = ()) -> dict[str, int]:
    """Package -> bytes, of those that pip brings for Weightbridge and not for TensorFlow."""
    return {name: size(name) for name in sorted(needed("weightbridge", extras) - needed("tensorflow"))}


def _seconds(*words: str) -> float:
    began = time.perf_counter()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


@click.command()
@click.option("--keep", type=click.Path(path_type=Path), help="Folder for the checkpoint, kept for the next run.")
@click.option("--rounds", default=5, show_default=True)
def main(keep: Path | None, rounds: int) -> None:
    print("| installed | beside TensorFlow | packages |")
    print("|---|---:|---|")
    for extras in ((), ("hf",), ("torch",)):
        sizes = added(extras)
        most = ", ".join(sorted(sizes, key=lambda name: -sizes[name])[:6])
        shown = f"weightbridge[{extras[0]}]" if extras else "weightbridge"
        print(f"| `{shown}` | {sum(sizes.values()) / MB:.0f} MB | {len(sizes)}: {most}{', ...' * (len(sizes) > 6)} |")

    folder = keep or Path(tempfile.mkdtemp())
    checkpoint = folder / "sam_vit_h.pth"
    if not checkpoint.exists():
        write = [sys.executable, "-m", "torch_refs.sam.seeded_checkpoint", "vit_h", str(checkpoint)]
        subprocess.run(write, check=True, stdout=subprocess.DEVNULL)
    commands = Path(sys.executable).parent
    print("\n| command | median s | least s |\n|---|---:|---:|")
    for words in (["convert", "--help"], ["weightbridge", "inspect", str(checkpoint)]):
        times = [_seconds(str(commands / words[0]), *words[1:]) for _ in range(rounds)]
        shown = " ".join(words[:2])
        print(f"| `{shown}` | {statistics.median(times):.2f} | {min(times):.2f} |")
    print(f"\nload average {os.getloadavg()[0]:.1f}")
    if keep is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
