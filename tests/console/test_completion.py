"""What the shells are offered, asked as they ask: by the environment of a command that prints completions."""

import subprocess

import click
import pytest
import torch

import converter
import converter.checkpoints.checkpoint
from converter.console import completion
from converter.pairs import registry
from tests.console.test_refusals import ALONE
from tests.support.running import BIN, environment
from tests.support.sam_sides import save_small, small_sides


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("completion")
    save_small(small_sides().torch, folder / "sam.weights.h5")
    torch.save({"model": {"a": torch.zeros(1)}, "model_ema": {"a": torch.zeros(1)}}, folder / "two.pth")
    (folder / "text.weights.h5").write_text("no weights")
    return folder


def offered(folder, *words, shell="bash"):
    """The completions of the last word, by a Python that imports no framework."""
    command = words[0]
    told = {"bash": ("\n".join(words), str(len(words) - 1)), "zsh": (" ".join(words), str(len(words) - 1))}[shell]
    code = ALONE + f"sys.argv = [{command!r}]\nimport cli\n{'cli.convert' if command == 'convert' else 'cli.main'}()"
    done = subprocess.run(
        [BIN / "python", "-c", code],
        cwd=folder,
        env={
            **environment(),
            f"_{command.upper()}_COMPLETE": f"{shell}_complete",
            "COMP_WORDS": told[0],
            "COMP_CWORD": told[1],
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    if shell == "zsh":
        return done.stdout.splitlines()[1::3]
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


def test_models(folder):
    assert offered(folder, "convert", "x.pth", "--model", "") == ["auto", *converter.names()]
    vits = [name for name in converter.names() if name.startswith("sam_v")]
    assert len(vits) > 2
    assert offered(folder, "convert", "--model", "sam_v") == vits
    assert offered(folder, "weightbridge", "verify", "-m", "sam_v") == vits
    assert offered(folder, "convert", "--model", "=", "sam_v") == vits, "bash takes --model=sam_v apart"


def test_options_of_the_chosen_model(folder):
    def options(*words):
        return offered(folder, "convert", *words)

    every = {name for pair in registry.pairs() for name in pair.options}
    assert {text.partition("=")[0] for text in options("x.pth", "--option", "")} == every
    assert options("--model", "sam_decoder", "--option", "") == ["num_heads="]
    assert options("--model", "dcn_v2", "x.pth", "--option", "st") == ["stride="]
    grids = [f"grid_variant={one}" for one in registry.get("deformable_attention_2d").options["grid_variant"].choices]
    assert len(grids) > 1
    assert options("-m", "deformable_attention_2d", "--option", "grid") == grids
    # Bash takes the word apart at "=", and replaces what is behind it.
    values = [grid.partition("=")[2] for grid in grids]
    assert options("-m", "deformable_attention_2d", "--option", "grid_variant", "=") == values
    assert options("-m", "deformable_attention_2d", "--option", "grid_variant", "=", values[0][:-1])[0] == values[0]
    assert options("-m", "deform_conv2d", "--option", "=", "modul") == ["modulated=true", "modulated=false"]
    assert options("-m", "deform_conv2d", "--option", "=", "modulated", "=", "t") == ["true"]
    assert options("--model", "nobody", "--option", "") == []
    zsh = offered(folder, "convert", "-m", "deform_conv2d", "--option", "modulated=t", shell="zsh")
    assert zsh == ["modulated=true"], "zsh leaves the word whole"


def test_parts_and_axes_of_the_file(folder):
    def export(*words):
        return offered(folder, "weightbridge", "export", *words)

    parts = ["image_encoder", "prompt_encoder", "mask_decoder"]
    assert export("sam.weights.h5", "--part", "") == [*parts, "from_pixels"]
    assert export("sam.weights.h5", "--format", "tflite", "--part", "") == parts, "which has no ops for the other"
    assert export("sam.weights.h5", "--format", "tflite", "--part", "m") == ["mask_decoder"]
    assert export("sam.weights.h5", "--size", "p") == ["prompts=", "points="]
    for none in ("text.weights.h5", "none.weights.h5"):
        assert export(none, "--part", "") == []
    assert export("--part", "") == []


def test_keys_of_the_checkpoint(folder):
    assert offered(folder, "convert", "two.pth", "--key", "") == ["model", "model_ema"]
    assert offered(folder, "convert", "none.pth", "--key", "") == []


def test_keys_of_a_stranger_s_checkpoint_are_plain_words(folder):
    names = ["plain-1.x_", "$(id)", "a b", "a\nb", "\x1b[2J", "`id`", "--overwrite", ".", "ü"]
    torch.save({name: {"a": torch.zeros(1)} for name in names}, folder / "strange.pth")
    with converter.checkpoints.checkpoint.Checkpoint(folder / "strange.pth") as checkpoint:
        assert len(checkpoint.states) == len(names)
    assert offered(folder, "convert", "strange.pth", "--key", "") == ["plain-1.x_"]


def test_nothing_is_fetched_for_a_completion(monkeypatch):
    asked = []
    monkeypatch.setattr("converter.checkpoints.checkpoint.located", lambda *words, **_: asked.append(words))
    for address in ("hf://o/a", "hf:/o/a"):
        context = click.Context(click.Command("convert"))
        context.args = [address]
        assert completion.keys(context, None, "") == []
    assert asked == []


BASH = r"""
eval "$(_CONVERT_COMPLETE=bash_source convert)"
compopt() { echo "compopt $1 $2"; }
COMP_WORDS=(convert -m deform_conv2d --option "$@") COMP_CWORD=$((3 + $#))
_convert_completion convert
echo "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["str"], "compopt -o nospace\nstride=\n"),
        (["modulated", "="], "true false\n"),
        (["modulated", "=", "f"], "false\n"),
    ],
)
def test_in_bash_itself(folder, words, expected):
    done = subprocess.run(
        ["bash", "--norc", "-c", BASH, "bash", *words],
        cwd=folder, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (expected, "")
