"""Sessions on the pages, copied from a terminal: `python -m benchmarks.sessions` runs them and writes what they print.

A session is a block of ```console: each line that starts with "$ " is a command, the lines below it are what it prints.
All of a page run one after another in an empty folder of their own.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = ("README.md",)
_BLOCK = re.compile(r"(?<=^```console\n).*?(?=^```)", re.M | re.S)
# What differs between runs, machines, and versions of torch: seconds, digits of rounding errors, and digests of what
# torch wrote.
_VOLATILE = ((r"\b\d+\.\d s\b", "N s"), (r"\b\d\.\de-\d\d\b", "N"), (r"\bsha256 [0-9a-f]+", "sha256 N"))


def commands(page: str) -> list[str]:
    """Every command of the page's sessions, in order."""
    return [line[2:] for block in _BLOCK.findall(page) for line in block.splitlines() if line.startswith("$ ")]


def run(page: str, folder: Path) -> str:
    """The page with its sessions as they run now, in `folder`.

    Raises:
        RuntimeError: a command failed.
    """
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "120",
    }

    def printed(command: str) -> str:
        done = subprocess.run(
            command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=600
        )
        if done.returncode:
            raise RuntimeError(f"$ {command}\n{done.stdout}{done.stderr}")
        return done.stdout

    def session(block: re.Match) -> str:
        asked = [line[2:] for line in block[0].splitlines() if line.startswith("$ ")]
        return "".join(f"$ {command}\n{printed(command)}" for command in asked)

    return _BLOCK.sub(session, page)


def settled(page: str) -> str:
    """The page without what differs from run to run."""
    for pattern, word in _VOLATILE:
        page = re.sub(pattern, word, page)
    return page


def main() -> None:
    for name in PAGES:
        text = (ROOT / name).read_text()
        with tempfile.TemporaryDirectory() as folder:
            (ROOT / name).write_text(run(text, Path(folder)))
        print(f"{name}: {len(commands(text))} commands")


if __name__ == "__main__":
    main()
