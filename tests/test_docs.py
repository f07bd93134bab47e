"""The pages that show code are run as they stand."""

import re
import shlex
import subprocess
from pathlib import Path

from converter import kinds
from tests.support.running import environment, run_forked

ROOT = Path(__file__).parent.parent
# A file (`name.py` in backticks, then a python block), or a block of shell commands.
BLOCK = re.compile(r"(?:^`([\w.]+)`\n\n)?^```(python|sh)\n(.*?)^```", re.M | re.S)


def run_page(name, folder, ours=()):
    """Write the page's files and run its commands in the folder; what each command printed.

    Commands that begin with one of `ours` are run without importing TensorFlow anew.
    """
    said = []
    for file, language, text in BLOCK.findall((ROOT / "docs" / name).read_text()):
        if language == "python":
            (folder / file).write_text(text)
            continue
        for line in text.splitlines():
            if line.startswith(ours):
                done = run_forked(*shlex.split(line), cwd=folder)
            else:
                done = subprocess.run(
                    line, shell=True, cwd=folder, capture_output=True, text=True, env=environment(), timeout=300
                )
            assert done.returncode == 0, f"{line}\n{done.stderr}"
            said.append(done.stdout)
    return said


def test_add_a_pair_runs_as_written(tmp_path):
    printed = run_page("add_a_pair.md", tmp_path)
    assert len(printed) == 5
    said = "".join(printed)
    assert "9 of 9 agree with torch" in said
    assert len(re.findall(r"^lossless +17 tensors, 8\.0 kB, equal bit for bit$", said, re.M)) == 2
    assert re.search("^12 [0-9]+$", said, re.M)
    assert (tmp_path / "weights" / "my_cnn.weights.h5").exists()


def test_training_runs_as_written(tmp_path):
    _, converted, tuned, restored, back, verified, again = run_page(
        "training.md", tmp_path, ("convert", "weightbridge")
    )
    text = (ROOT / "docs" / "training.md").read_text()
    assert re.search(r"^training  \d+ of \d+ gradients.*$", text, re.M)[0] in converted.splitlines()
    assert tuned == "learned\n"
    assert "trained   after the conversion, so the values are new" in restored.splitlines()
    assert back.splitlines()[0] == "<All keys matched successfully>"
    assert re.fullmatch(r"(\d+) of \d+ tensors were trained", back.splitlines()[1])
    assert re.search(r"^layers +(\d+) of \1 agree with torch", verified, re.M)
    assert "trained   after the conversion" in verified.splitlines()
    assert "after the conversion, as the part decoder of a larger model, so the values are new" in again
    assert (tmp_path / "again.pth").read_bytes() == (tmp_path / "tuned.pth").read_bytes()


def test_every_kind_stands_in_the_table():
    text = (ROOT / "docs" / "add_a_pair.md").read_text()
    table = text[text.index("## Every kind") : text.index("## A kind of your own")]
    names = set()
    for row in table.splitlines():
        if row.startswith("| `"):
            words = re.findall(r"`(\w+)`", row.split("|")[1])
            names |= {word if not word.startswith("_") else re.sub(r"_\dD$", word, words[0]) for word in words}
    known = {name for name, value in vars(kinds).items() if isinstance(value, kinds.Kind)}
    assert known == names


def test_the_kind_of_ones_own_is_one():
    text = (ROOT / "docs" / "add_a_pair.md").read_text()
    code = text[text.index("    from converter.kinds import Kind, leaf") : text.index("The Keras layer for this row")]
    home: dict = {}
    exec("\n".join(line[4:] for line in code.splitlines()), home)
    kernel, bias = home["GATED"].leaves
    assert kernel.torch_shapes([(5, 3), (5, 4)]) == [(7, 5)]
    assert bias.torch_shapes([(3,), (4,)]) == [(7,)]


def test_one_call_builds_what_build_does():
    text = (ROOT / "docs" / "add_a_pair.md").read_text()
    blocks = {name: code for name, _, code in BLOCK.findall(text)}
    written: dict = {}
    exec(blocks["my_cnn_tf.py"], written)
    code = blocks["my_cnn_tf.py"]
    called: dict = {}
    exec(code[: code.index("    def build(self")] + code[code.index("    def call(self") :], called)
    section = text[text.index("## Building by one call") :]
    block = re.search(r"\n\n((?:    .*\n)+)", section)
    exec("\n".join(line[4:] for line in block[1].splitlines()), called)
    shapes = [[tuple(weight.shape) for weight in home["build"](width=12).weights] for home in (written, called)]
    assert sorted(shapes[0]) == sorted(shapes[1])
    assert len(shapes[0]) == 17
