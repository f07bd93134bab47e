"""Another Python, with what this one can import and nothing else."""

import os
import sys

_BOOT = (
    "import sys; sys.path = [path for path in sys.path if path]; import ast; sys.path = ast.literal_eval(sys.argv[1]); "
)


def python(program: str, *arguments: str) -> list[str]:
    """The command that runs a line of Python, which finds the arguments in `sys.argv[2:]`.

    Neither -m nor PYTHONPATH: both would let a `torch.py` in the current folder run.
    """
    path = [str(path) if path else os.getcwd() for path in sys.path]
    return [sys.executable, "-c", _BOOT + program, repr(path), *arguments]
