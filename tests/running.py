"""Running the commands in a process of their own, as a user does."""

import os
import subprocess
import sys
from pathlib import Path

BIN = Path(sys.executable).parent


def environment() -> dict[str, str]:
    """The caller's environment with this interpreter's commands first on the path."""
    return {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}


def run(*command: object, cwd: Path | str, timeout: float = 300) -> subprocess.CompletedProcess:
    """Run a command (`convert`, `weightbridge`, `python`) in `cwd`; its output is text."""
    return subprocess.run(
        [str(BIN / str(command[0])), *map(str, command[1:])],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=environment(),
        timeout=timeout,
        check=False,
        stdin=subprocess.DEVNULL,
    )
