"""Folders of small pictures, some of them broken, and a task over them that needs no network."""

import os
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

from converter.console.commands import Command, answering
from tf_models.pictures.running import over
from tf_models.runtime.weights_format import provenance

SIZES = ((12, 17), (17, 12), (9, 9))  # (H, W)


def pixels(number: int) -> np.ndarray:
    height, width = SIZES[number % len(SIZES)]
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)


def write_pictures(folder: Path, count: int) -> list[str]:
    """So many pictures in two folders, each of its own."""
    names = [f"{('a', 'b/c')[number % 2]}/{number:04}.png" for number in range(count)]
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(number)).save(folder / name)
    return names


def break_pictures(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Ten that are broken, each in another way, in the place of these; name -> what its reason says."""
    whole = (folder / names[0]).read_bytes()
    big = np.zeros((30, 40, 3), np.uint8)
    reasons = {}
    for name, (how, reason) in zip(
        names,
        [
            (lambda path: path.write_bytes(whole[: len(whole) // 2]), "is damaged"),
            (lambda path: path.write_bytes(whole[:8]), "is not a picture"),
            (lambda path: path.write_bytes(b""), "is not a picture"),
            (lambda path: path.write_text("no picture at all"), "is not a picture"),
            (lambda path: path.symlink_to("nowhere.png"), "no such file"),
            (lambda path: os.mkfifo(path), "is not a file"),
            (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50)), "is"),
            (lambda path: Image.fromarray(big[..., 0].astype(np.float32)).save(path, "TIFF"), "floating-point"),
            (lambda path: path.write_bytes(whole[:-30] + bytes(30)), "is damaged"),
            (lambda path: Image.fromarray(big).save(path), "the task takes none so wide"),
        ],
        strict=True,
    ):
        (folder / name).unlink()
        how(folder / name)
        reasons[name] = reason
    return reasons


class MeanColour:
    """Each picture's mean colour, beside a mask of all of it; those wider than 30 pixels are refused.

    Args:
        seen: a file that gets a line for each picture that was computed: its checksum.
        seconds: what a picture takes.
    """

    name = "mean_colour"
    keys = ("shift",)

    def __init__(self, seen: Path | None = None, seconds: float = 0, factor: int = 1) -> None:
        self.seen, self.seconds, self.factor = seen, seconds, factor

    @property
    def options(self) -> dict[str, Any]:
        return {"factor": self.factor}

    @property
    def categories(self) -> list[dict[str, Any]]:
        return [{"id": 1, "name": "picture"}]

    def check(self, weights: str) -> None:
        provenance(weights)

    def load(self, weights: str) -> Any:
        assert Path(weights).is_file()

        def call(pictures: Sequence[Any]) -> list[list[dict[str, Any]]]:
            assert len({picture.pixels.shape for picture in pictures}) == 1
            found = []
            for picture in pictures:
                height, width = picture.pixels.shape[:2]
                if width > 30:
                    raise ValueError("the task takes none so wide")
                time.sleep(self.seconds)
                mean = float(picture.pixels.mean()) * self.factor + picture.entry.get("shift", 0)
                mask = {"size": [height, width], "counts": [0, height * width]}
                # `together` tells which pictures were in the network at once, as roundings would.
                found.append(
                    [
                        {
                            "category_id": 1,
                            "segmentation": mask,
                            "area": height * width,
                            "bbox": [0, 0, width, height],
                            "iscrowd": 0,
                            "mean": mean,
                            "together": float(sum(each.pixels.mean() for each in pictures)),
                        }
                    ]
                )
            if self.seen is not None:
                with open(self.seen, "a") as file:
                    file.writelines(f"{zlib.crc32(picture.pixels.tobytes())}\n" for picture in pictures)
            return found

        return call


@click.command(cls=Command)
@click.argument("weights")
@click.argument("pictures")
@click.argument("output")
@click.argument("seen")
@click.argument("seconds", type=float)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@answering
def main(weights: str, pictures: str, output: str, seen: str, seconds: float, options: tuple[str, ...]) -> None:
    """A run as a command, to be killed."""
    over(MeanColour(Path(seen), seconds), weights, pictures, output, shard_size=16, batch_size=3, options=options)


if __name__ == "__main__":
    main()
