"""Have every file of a folder converted in this process; print what came of each, how long it took, and its memory.

    python -m tests.hardening.converting_each FOLDER

Run in a child process, whose peak memory is reset before each file. One line of JSON for each file. The output that
stands there before must be as it was, and alone in its folder.
"""

import json
import os
import sys
import time
from pathlib import Path

import converter
from tests.support import smallest_pair


def peak() -> int:
    """Peak resident bytes of this process since `reset`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def reset() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def attempt(path: Path, output: Path) -> dict[str, object]:
    """What comes of converting the file; its names are tried on every pair when there are many of them."""
    model = "auto" if path.stat().st_size > 100_000 else smallest_pair.PAIR.name
    reset()
    began = time.process_time()
    try:
        converter.convert(model, path, output, "lossless", overwrite=True)
        kind, message = "accepted", ""
    except Exception as error:
        kind, message = type(error).__name__, str(error)
        if not isinstance(error, converter.ConversionError):
            kind = f"ESCAPED {kind}"
    return {"kind": kind, "message": message, "seconds": time.process_time() - began, "peak": peak()}


def main(folder: Path) -> None:
    converter.register(smallest_pair.PAIR)
    output = folder.parent / "output" / "previous.weights.h5"
    output.parent.mkdir()
    output.write_bytes(b"previous")
    for path in sorted(folder.iterdir()):
        row = attempt(path, output)
        untouched = os.listdir(output.parent) == [output.name] and output.read_bytes() == b"previous"
        print(json.dumps({"file": path.name, **row, "untouched": untouched}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
