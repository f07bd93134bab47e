"""Which pictures a run is about: all of a folder, those that a list names, or those that have prompts."""

import json
from collections.abc import Sequence
from typing import Any

from tf_models.pictures import storage
from tf_models.pictures.reading import PictureError
from tf_models.runtime.weights_format import printable

# Endings of the files in a folder that are taken for pictures.
ENDINGS = (".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

# A picture by its name, or {"picture": name, ...} with what the task needs to know beside it.
Entry = str | dict[str, Any]


def name_of(entry: Entry) -> str:
    return entry if isinstance(entry, str) else entry["picture"]


def in_folder(folder: str) -> list[Entry]:
    """The names of all pictures in a folder and those below it, relative to it, sorted.

    Raises:
        PictureError: there are none, or the folder cannot be read.
    """
    try:
        names = sorted(name for name in storage.walk(folder) if name.lower().endswith(ENDINGS))
    except OSError as error:
        place = error.filename if isinstance(error.filename, str) else folder
        raise PictureError(f"{printable(place)} cannot be read: {error.strerror or error}") from None
    if not names:
        raise PictureError(f"{printable(folder)} holds no pictures ({' '.join(ENDINGS)})")
    return list(names)


def in_list(file: str) -> list[Entry]:
    """The names that stand in a text file, one a line, each once, in their order.

    Raises:
        PictureError: the file cannot be read, or names none.
    """
    names: list[Entry] = list(dict.fromkeys(line for line in _lines(file) if line.strip()))
    if not names:
        raise PictureError(f"{printable(file)} names no pictures; give one a line")
    return names


def with_prompts(file: str, keys: Sequence[str]) -> list[Entry]:
    """The entries of a JSON lines file: {"picture": name, ...}, each picture once, with some of `keys` and no others.

    Raises:
        PictureError: the file cannot be read, or a line is something else.
    """
    entries: dict[str, Entry] = {}
    for number, line in enumerate(_lines(file), start=1):
        if not line.strip():
            continue
        place = f"{printable(file)}, line {number}"
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if not isinstance(entry, dict) or not isinstance(entry.get("picture"), str):
            raise PictureError(f'{place} is not {{"picture": NAME, ...}}')
        unknown = sorted(set(entry) - {"picture", *keys})
        if unknown:
            raise PictureError(f"{place} has {printable(unknown[0])}; known are picture, {', '.join(keys)}")
        if entry["picture"] in entries:
            raise PictureError(f"{place} names {printable(entry['picture'])} a second time")
        entries[entry["picture"]] = entry
    if not entries:
        raise PictureError(f"{printable(file)} names no pictures")
    return list(entries.values())


def _lines(file: str) -> list[str]:
    try:
        return storage.read(file).decode(errors="surrogateescape").splitlines()
    except OSError as error:
        raise PictureError(f"{printable(file)} cannot be read: {error.strerror or error}") from None
