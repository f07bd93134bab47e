"""The commands in processes of their own: what they print, where, and with which exit code."""

import ast
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

import converter
import torch_refs
from tests.support.checkpoints import prefixed, save
from tests.support.running import BIN, environment, run, run_forked
from tests.support.small_sam import decoder_state

HEADS = ("--option", "num_heads=4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a small full-model checkpoint, and the decoder converted from it."""
    folder = tmp_path_factory.mktemp("cli")
    full = {**prefixed(decoder_state(), "mask_decoder."), "image_encoder.pos_embed": torch.zeros(2, 3)}
    save(full, folder)
    done = run("convert", "--model", "sam_decoder", "ckpt.pth", *HEADS, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "nothing but the report, and no bar in a pipe"
    (folder / "said").write_text(done.stdout)
    return folder


def test_convert_says_what_it_did_in_aligned_lines(folder):
    lines = (folder / "said").read_text().splitlines()
    assert (folder / "weights" / "sam_decoder.weights.h5").is_file()
    headings = [line[:12].strip() for line in lines]
    assert headings == [
        "model",
        "source",
        "out of scope",
        "lossless",
        "layers",
        "between",
        "output",
        "output",
        "written",
        "load it",
    ]
    assert lines[-1] == 'load it      tf_models.load("weights/sam_decoder.weights.h5")'
    assert "120 tensors" in lines[3]
    assert "61 of 61 agree" in lines[4]


def test_an_existing_output_needs_overwrite(folder):
    path = folder / "weights" / "sam_decoder.weights.h5"
    before = path.read_bytes()
    done = run("convert", "ckpt.pth", *HEADS, cwd=folder)
    assert done.returncode == 1
    assert done.stderr == f"error: the output {path.relative_to(folder)} exists; --overwrite replaces it\n"
    done = run_forked("convert", "ckpt.pth", *HEADS, "--overwrite", "--verify", "none", "--quiet", cwd=folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert path.read_bytes() != before, "the proof is no longer recorded"
    path.write_bytes(before)


def test_dry_run_prints_the_plan_and_writes_nothing(folder):
    before = sorted(path.name for path in folder.iterdir())
    done = run_forked("weightbridge", "convert", "ckpt.pth", *HEADS, "--dry-run", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "mask_decoder.iou_token.weight" in done.stdout
    assert "120 tensors fill 120 variables" in done.stdout
    done = run_forked("convert", "ckpt.pth", *HEADS, "--dry-run", "--json", cwd=folder)
    assert len(json.loads(done.stdout)["steps"]) == 120
    assert sorted(path.name for path in folder.iterdir()) == before


def test_json_report(folder, tmp_path):
    output = tmp_path / "new" / "folder" / "o.weights.h5"
    done = run_forked("convert", "ckpt.pth", *HEADS, "--verify", "lossless", "--json", "-o", output, cwd=folder)
    report = json.loads(done.stdout)
    assert report["lossless"]["passed"] is True
    assert report["numerical"]["ran"] is False
    assert report["output"] == str(output)
    assert output.is_file()


def test_verify(folder, tmp_path):
    weights = "weights/sam_decoder.weights.h5"
    done = run_forked("weightbridge", "verify", "--model", "sam_decoder", "ckpt.pth", weights, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "61 of 61 agree" in done.stdout
    other = save(prefixed(decoder_state(seed=1), "mask_decoder."), tmp_path)
    done = run_forked("weightbridge", "verify", other, weights, "--level", "lossless", cwd=folder)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the proof failed: lossless: 120 tensors differ")
    assert done.stderr.count("\n") == 1


def test_models_lists_names_tensors_and_options(folder):
    done = run("weightbridge", "models", cwd=folder)
    assert done.returncode == 0
    assert re.search(r"^sam_decoder +120 tensors", done.stdout, re.MULTILINE)
    assert "--option num_heads=8" in done.stdout
    listed = json.loads(run("weightbridge", "models", "--json", cwd=folder).stdout)
    assert next(one for one in listed if one["name"] == "sam_decoder")["options"]["num_heads"]["default"] == 8


def test_models_lists_each_published_size_with_its_own_count(folder):
    lines = run("weightbridge", "models", cwd=folder).stdout.splitlines()
    rows = [line for line in lines if not line.startswith(" ")]
    assert len({len(re.sub("(tensors|any size)  .*", r"\1", line)) for line in rows}) == 1
    counts = {line.split()[0]: line.split()[1] for line in rows}
    assert {name: counts[name] for name in ("sam", "sam_vit_b", "sam_vit_h", "sam_vit_l")} == {
        "sam": "any", "sam_vit_b": "314", "sam_vit_h": "594", "sam_vit_l": "482",
    }  # fmt: skip
    listed = {one["name"]: one for one in json.loads(run("weightbridge", "models", "--json", cwd=folder).stdout)}
    assert [*listed] == [*counts] == converter.names()
    assert (listed["sam"]["tensors"], listed["sam"]["family"]) == (None, None)
    assert (listed["sam_vit_l"]["tensors"], listed["sam_vit_l"]["family"]) == (482, "sam")


@pytest.mark.parametrize("file", ["ckpt.pth", "weights/sam_decoder.weights.h5", "model.safetensors"])
def test_inspect(file, folder):
    safetensors.torch.save_file({"a.weight": torch.zeros(2, 3, dtype=torch.bfloat16)}, folder / "model.safetensors")
    done = run("weightbridge", "inspect", file, cwd=folder)
    assert done.returncode == 0, done.stderr
    as_json = json.loads(run("weightbridge", "inspect", file, "--json", cwd=folder).stdout)
    if file == "model.safetensors":
        assert done.stdout.splitlines()[0].split() == ["a.weight", "2x3", "bfloat16", "12"]
        assert as_json["entries"] == [{"name": "a.weight", "shape": [2, 3], "dtype": "bfloat16", "nbytes": 12}]
    elif file == "ckpt.pth":
        assert "zip: 121 tensors" in done.stdout
    else:
        assert "source_sha256" in done.stdout
        assert as_json["provenance"]["model"] == "sam_decoder"


def test_help_and_version_answer_at_once_and_import_neither_framework(folder):
    code = (
        "import sys; sys.argv = ['convert', '--help']\n"
        "import cli\n"
        "try: cli.convert()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'tensorflow', 'keras', 'numpy', 'h5py'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = run("python", "-c", code, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "--dry-run" in done.stdout
    for command in ("convert", "weightbridge"):
        assert run(command, "--version", cwd=folder).stdout.startswith("weightbridge 0.")


@pytest.mark.parametrize(("number", "code", "word"), [("SIGTERM", 143, "terminated"), ("SIGINT", 130, "interrupted")])
def test_a_signal_ends_the_command_whatever_is_made_of_it_on_the_way(folder, number, code, word):
    """Python puts a RuntimeError in the place of what is raised in `__set_name__`, libraries an error of their own."""
    program = (
        "import click, os, signal\n"
        "from converter.console.commands import Command, answering\n"
        "@click.command(cls=Command)\n"
        "@answering\n"
        "def work():\n"
        "    try:\n"
        f"        os.kill(os.getpid(), signal.{number})\n"
        "        for _ in range(1000): pass\n"
        "    except BaseException as error:\n"
        "        raise RuntimeError('something else') from error\n"
        "work()\n"
    )
    done = run("python", "-c", program, cwd=folder)
    assert (done.returncode, done.stderr) == (code, f"error: {word}\n")


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["convert", "ckpt.pth", "--model", "nobody"], 2, "no model is named nobody"),
        (["convert", "ckpt.pth", "--model", "sam_decoder", "--option", "x=1"], 2, "no option x; known: num_heads"),
        (["convert", "ckpt.pth", "--option", "x"], 2, "is not KEY=VALUE"),
        (["convert", "ckpt.pth", "--verify", "some"], 2, "'some' is not one of"),
        (["convert"], 2, "Missing argument"),
        (["convert", "ckpt.pth", "--pair", "no.such:PAIR"], 2, "cannot be imported: ModuleNotFoundError"),
        (["convert", "ckpt.pth", "--pair", "broken:PAIR"], 2, "cannot be imported: broken.py:1: ZeroDivisionError"),
        (["convert", "ckpt.pth", *HEADS, *HEADS], 2, "num_heads is given twice"),
        (
            ["convert", "ckpt.pth", "--option", "num_heads=7", "-o", "n.weights.h5"],
            2,
            "num_heads takes a divisor of 16",
        ),
        (["convert", "nowhere.pth"], 1, "nowhere.pth: no such file"),
        (["convert", "empty"], 1, "empty: the file is empty"),
        (["convert", "text.pth"], 1, "text.pth: it is not a checkpoint"),
        (["convert", "cut.pth"], 1, "cut.pth: its zip directory is damaged or cut off"),
        (["convert", "folder"], 1, "folder: the folder holds no checkpoint (looked for model.safetensors"),
        (["convert", "other.pth", "--model", "sam_decoder"], 1, "it holds no tensor of sam_decoder"),
        (["convert", "ckpt.pth", *HEADS, "-o", "folder"], 1, "must end in .weights.h5"),
        (["convert", "ckpt.pth", *HEADS, "-o", "text.pth/o.weights.h5"], 1, "cannot be written"),
        (["weightbridge", "inspect", "text.pth"], 1, "it is not a checkpoint"),
        (["weightbridge", "verify", "ckpt.pth", "text.pth"], 1, "is not a readable HDF5 file"),
    ],
)
def test_bad_input_gives_one_line_and_an_exit_code(arguments, code, told, folder):
    (folder / "empty").write_bytes(b"")
    (folder / "text.pth").write_text("these are not weights")
    (folder / "cut.pth").write_bytes((folder / "ckpt.pth").read_bytes()[:-1000])
    (folder / "folder").mkdir(exist_ok=True)
    (folder / "broken.py").write_text("1 / 0\n")
    save({"fc.weight": torch.zeros(2, 2)}, folder, "other.pth")
    (folder / "__pycache__").mkdir(exist_ok=True)
    before = {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}
    late = told == "cannot be written"  # found out when TensorFlow is there
    done = (run_forked if late else run)(*arguments, cwd=folder)
    assert done.returncode == code
    assert told in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1
    assert len(done.stderr) <= 500
    after = {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}
    caches = [path for path in after if "__pycache__" in path.parts]  # Python's own, of a user's module
    assert {path: when for path, when in after.items() if path not in caches} == {
        path: when for path, when in before.items() if path not in caches
    }


def test_debug_shows_the_traceback(folder):
    done = run("convert", "nowhere.pth", "--debug", cwd=folder)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1] == "error: nowhere.pth: no such file"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_conversion_leaves_nothing(number, code, folder, tmp_path):
    process = subprocess.Popen(
        [str(BIN / "convert"), str(folder / "ckpt.pth"), *HEADS, "-o", str(tmp_path / "o.weights.h5")],
        env=environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    waited = time.monotonic() + 60
    while not list(tmp_path.iterdir()) and time.monotonic() < waited and process.poll() is None:
        time.sleep(0.01)
    assert list(tmp_path.iterdir()), "it has begun to write"
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert said.decode().count("\n") <= 1
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_gets_a_progress_bar(folder, tmp_path):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [str(BIN / "convert"), str(folder / "ckpt.pth"), *HEADS, "-o", str(tmp_path / "o.weights.h5")],
        env={**environment(), "TERM": "xterm-256color", "COLUMNS": "100"},
        stderr=theirs,
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            chunk = os.read(ours, 1 << 16)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        shown += chunk
    process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0
    assert b"numerical" in shown


def test_nothing_in_the_checkpoint_s_folder_is_run(folder, tmp_path):
    for module in ("torch", "numpy", "tensorflow", "converter", "ast", "argparse"):
        (tmp_path / f"{module}.py").write_text("open('ran', 'w').close()\nraise SystemExit(1)\n")
    done = run("convert", folder / "ckpt.pth", *HEADS, "-o", "o.weights.h5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ran").exists()


LOSSLESS = ("ckpt.pth", *HEADS, "--verify", "lossless", "--overwrite")


def shell(script: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    """Run a line of bash, in which "$@" stands for the arguments."""
    command = ["bash", "-c", f"set -o pipefail; {script}", "bash", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("redirected", "code", "told"),
    [
        (">/dev/full", 1, "error: the report cannot be printed: No space left on device; the output is written\n"),
        ("| true", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
    ],
)
def test_a_report_that_nobody_can_read_is_no_failed_conversion(redirected, code, told, folder, tmp_path):
    output = tmp_path / "o.weights.h5"
    done = shell(f'convert "$@" {redirected}', *LOSSLESS, "-o", output, cwd=folder)
    assert (done.returncode, done.stderr) == (code, told)
    assert run("weightbridge", "inspect", output, cwd=folder).returncode == 0


@pytest.mark.parametrize(
    ("command", "code", "told"),
    [
        ("convert --help >/dev/full", 1, "error: what was asked for cannot be printed: No space left on device\n"),
        ("weightbridge models >/dev/full", 1, "error: the report cannot be printed: No space left on device\n"),
        ("weightbridge models | true", 0, ""),
        ("convert nowhere.pth 2>&-", 1, ""),
        ("convert nowhere.pth 2>/dev/full", 1, ""),
        ("convert 2>/dev/full", 2, ""),
    ],
)
def test_streams_that_are_closed_or_full(command, code, told, folder):
    done = shell(command, cwd=folder)
    assert (done.returncode, done.stderr) == (code, told)


def test_a_failed_proof_is_a_failure_even_where_nobody_reads_the_report(folder, tmp_path):
    other = save(prefixed(decoder_state(seed=1), "mask_decoder."), tmp_path)
    arguments = ("verify", other, "weights/sam_decoder.weights.h5", "--level", "lossless")
    done = shell('weightbridge "$@" | true', *arguments, cwd=folder)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the proof failed")


@pytest.mark.parametrize("name", [b"caf\xe9", "a\x1b[31m\n\u202eb".encode()])
def test_names_of_files_that_are_no_text(name, folder, tmp_path):
    source, output = (os.fsdecode(name + ending) for ending in (b".pth", b".weights.h5"))
    shutil.copy(folder / "ckpt.pth", tmp_path / source)
    done = run_forked("convert", source, *LOSSLESS[1:], "-o", output, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(line.isprintable() for line in done.stdout.splitlines())
    assert [line.split()[0] for line in done.stdout.splitlines()[-2:]] == ["written", "load"]
    assert ast.literal_eval(done.stdout.partition("tf_models.load")[2]) == output
    done = run_forked("weightbridge", "restore", output, "-o", f"new{source}", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(line.isprintable() for line in done.stdout.splitlines())
    done = run("weightbridge", "inspect", output, cwd=tmp_path)
    assert done.returncode == 0
    assert all(line.isprintable() for line in done.stdout.splitlines())


def test_the_output_is_not_what_is_read(folder, tmp_path):
    source, output = tmp_path / "self.weights.h5", tmp_path / "self.pth"
    shutil.copy(folder / "ckpt.pth", source)
    done = run("convert", source, *HEADS, "-o", source, "--overwrite", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "is the file that is read" in done.stderr
    assert source.read_bytes() == (folder / "ckpt.pth").read_bytes()
    weights = folder / "weights" / "sam_decoder.weights.h5"
    shutil.copy(weights, source)
    os.link(source, output)
    done = run("weightbridge", "restore", source, "-o", output, "--overwrite", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "is the file that is read" in done.stderr
    assert output.read_bytes() == weights.read_bytes()


def test_weightbridge_alone_prints_its_help(folder):
    done = run("weightbridge", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: weightbridge")


@pytest.mark.parametrize(
    "arguments",
    [
        ["convert", "--" + "x" * 2000],
        ["weightbridge", "x" * 1000],
        ["convert", "ckpt.pth", "--pair", "a\x1b[31m"],
        ["convert", "ckpt.pth", "more\x1b[31m\u202e"],
        ["convert", "ckpt.pth", "--option", "\x1b[31m" * 200],
    ],
)
def test_a_wrong_command_gives_one_short_line_that_only_prints(arguments, folder):
    ours, theirs = pty.openpty()  # a terminal, where escape sequences would act
    done = subprocess.run(
        [BIN / arguments[0], *arguments[1:]], cwd=folder, env=environment(), stderr=theirs, check=False
    )
    os.close(theirs)
    said = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert done.returncode == 2
    assert said.startswith("error: ")
    assert said.endswith("\r\n")
    assert said[:-2].isprintable()
    assert len(said) <= 500


ORDERS = [
    "import tensorflow",
    pytest.param("import torch, torchvision", marks=pytest.mark.slow),
    "",
    pytest.param("import torch, torchvision; import tensorflow", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("first", ORDERS)
def test_it_works_whatever_was_imported_first(first, tmp_path):
    save(torch_refs.create("deform_conv2d", in_channels=3, out_channels=4).state_dict(), tmp_path)
    code = f"""
{first}
import converter
report = converter.convert("deform_conv2d", "ckpt.pth", "o.weights.h5")
assert report.lossless and report.numerical.full
import tf_models
tf_models.load(report.output)
"""
    done = run("python", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_pair_cannot_be_mistaken(folder):
    (folder / "mine.py").write_text("PAIR = 3\n")
    done = run("convert", "ckpt.pth", "--pair", "mine:PAIR", cwd=folder)
    assert done.returncode == 2
    assert "mine:PAIR is a int, not a converter.Pair" in done.stderr
