"""The pages that show code are run as they stand."""

import re
import subprocess
from pathlib import Path

from tests.running import environment

ROOT = Path(__file__).parent.parent
# A file (`name.py` in backticks, then a python block), or a block of shell commands.
BLOCK = re.compile(r"(?:^`([\w.]+)`\n\n)?^```(python|sh)\n(.*?)^```", re.M | re.S)


def test_add_a_pair_runs_as_written(tmp_path):
    commands = 0
    said = ""
    for name, language, text in BLOCK.findall((ROOT / "docs" / "add_a_pair.md").read_text()):
        if language == "python":
            (tmp_path / name).write_text(text)
            continue
        for line in text.splitlines():
            done = subprocess.run(
                line, shell=True, cwd=tmp_path, capture_output=True, text=True, env=environment(), timeout=300
            )
            assert done.returncode == 0, f"{line}\n{done.stderr}"
            commands += 1
            said += done.stdout
    assert commands == 3
    assert "9 of 9 agree with torch" in said
    assert re.search(r"^lossless +17 tensors, 8\.0 kB, equal bit for bit$", said, re.M)
    assert said.splitlines()[-1].startswith("12 ")
    assert (tmp_path / "weights" / "my_cnn.weights.h5").exists()
