"""A quick profile of the fuzzing that `make fuzz` does at length."""

import re
import subprocess
import sys
from pathlib import Path

from tests.hardening.fuzzing import FORMATS
from tests.support.running import environment

ROOT = Path(__file__).parent.parent.parent
MUTANTS = 1500


def test_mutated_files_are_refused_or_hold_what_the_original_holds():
    """In a process of its own: a library that ends the process must not end the tests."""
    command = [sys.executable, "-m", "tests.hardening.fuzzing", "--mutants", str(MUTANTS)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment(), check=False)
    print(done.stdout, end="")
    assert done.returncode == 0, done.stdout + done.stderr[-1000:]
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == list(FORMATS)
    for line in lines:
        counts = {word: int(count) for count, word in re.findall(r"(\d+) (refused|equal)", line)}
        assert counts["refused"] > MUTANTS / 2, line
        assert counts["equal"] > 0, line
