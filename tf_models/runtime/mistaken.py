"""What people name where a converted file is meant: what it is, and which file or model may be meant instead."""

import difflib
import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

HDF5 = b"\x89HDF\r\n\x1a\n"
_PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*")  # PNG, JPEG, GIF, TIFF of both byte orders
_FLAGS = ("O_CLOEXEC", "O_NONBLOCK", "O_BINARY")  # not every system has each
_MOST_NAMES = 1000  # of a folder that are looked at


def kind(path: str | os.PathLike) -> str | None:
    """ "weights" (HDF5), "checkpoint" (torch's or safetensors), "keras" (a whole model) or "picture", by the first
    bytes of a file; None where it is none of them, or cannot be read."""
    try:
        # Neither a pipe nor a device is waited for.
        descriptor = os.open(path, os.O_RDONLY | sum(getattr(os, name, 0) for name in _FLAGS))
    except (OSError, ValueError):
        return None
    try:
        head = os.read(descriptor, 100)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    if head.startswith(HDF5):
        return "weights"
    if is_picture(head):
        return "picture"
    if head.startswith(b"PK"):
        return "checkpoint" if b"/" in head[30:] else "keras" if head[30:].startswith(b"metadata.json") else None
    return "checkpoint" if head.startswith(b"\x80") or head[8:9] == b"{" else None


def is_picture(head: bytes) -> bool:
    """Whether a file with these first bytes, 12 at least, is a picture."""
    bitmap = head.startswith(b"BM") and head[6:10] == bytes(4)
    return head.startswith(_PICTURES) or bitmap or (head.startswith(b"RIFF") and head[8:12] == b"WEBP")


def names_in(folder: str | os.PathLike) -> list[str]:
    """What stands in a folder, of a very large one a part; nothing where it cannot be looked into."""
    try:
        with os.scandir(Path(folder)) as entries:
            return [entry.name for entry in islice(entries, _MOST_NAMES)]
    except (OSError, ValueError):
        return []


def near(path: str | os.PathLike, endings: Sequence[str]) -> str | None:
    """The name of a file in the same folder that may be meant, of those with such an ending."""
    wanted = Path(path)
    others = [name for name in names_in(wanted.parent) if name != wanted.name]  # itself is a link to nowhere
    stems = {_stem(name): name for name in others if name.endswith(tuple(endings))}
    found = difflib.get_close_matches(_stem(wanted.name), stems, 1, 0.75)  # the ending is alike in most of them
    return stems[found[0]] if found else None


def _stem(name: str) -> str:
    return Path(name).stem.removesuffix(".weights").removesuffix(".weight")


def meant(name: str, known: Sequence[str]) -> str:
    """What `name` may mean of the known ones, in a question, and all of them."""
    found = difflib.get_close_matches(name, known, 1, 0.75)
    return (f"did you mean {found[0]}? known" if found else "known") + f": {', '.join(known)}"
