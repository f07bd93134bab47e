"""What a file's attributes can answer is refused before a framework is loaded, which takes seconds."""

import numpy as np
import pytest
from PIL import Image

from tests.support import converted
from tests.support.pairs import registered
from tests.support.running import ROOT, run
from tests.support.sam_sides import save_small, small_sides
from tf_models.runtime.weights_format import PREFIX

# Importing a framework fails, as it would where there is none.
ALONE = """
import sys

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name in ("tensorflow", "keras", "torch"):
            raise AssertionError(f"{name} is imported")

sys.meta_path.insert(0, Forbidden())
"""
COMMAND = ALONE + f"sys.path.insert(1, {str(ROOT)!r})\nimport cli; cli.main()"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A converted whole SAM, damaged copies of it, and files of other models."""
    folder = tmp_path_factory.mktemp("refusals")
    Image.fromarray(np.zeros((9, 8, 3), np.uint8)).save(folder / "photo.png")
    save_small(small_sides().torch, folder / "sam.weights.h5")
    with registered(converted.PAIR):
        converted.convert(folder).rename(folder / "stack.weights.h5")
    for name, change in {
        "decoder": lambda file: file.attrs.__setitem__(PREFIX + "model", np.bytes_(b"sam_decoder")),
        "config": lambda file: file.attrs.__setitem__(PREFIX + "config", np.bytes_(b"{")),
        "plain": lambda file: [file.attrs.__delitem__(key) for key in [*file.attrs]],
        "changed": lambda file: file.attrs.__setitem__(PREFIX + "version", np.bytes_(b"9")),
    }.items():
        path = folder / f"{name}.weights.h5"
        path.write_bytes((folder / "sam.weights.h5").read_bytes())
        converted.tampered(path, change, signed=name == "decoder")
    (folder / "there").mkdir()
    return folder


def refused(folder, *arguments):
    """(exit code, message) of a command that may import no framework."""
    before = sorted(folder.iterdir())
    done = run("python", "-c", COMMAND, *arguments, cwd=folder)
    assert sorted(folder.iterdir()) == before
    assert (done.stdout, done.stderr.count("\n")) == ("", 1), done.stderr
    assert done.stderr.startswith("error: ")
    return done.returncode, done.stderr


PAIR = "tests.support.converted:PAIR"
SEGMENT = ("photo.png", "--point", "1,1", "-o", "out.png")


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ("decoder", "decoder.weights.h5 holds sam_decoder, which is not a whole SAM with an image encoder"),
        ("stack", "stack.weights.h5: holds the model stack, which is not known here; known: "),
        ("config", "config.weights.h5: its config is not JSON"),
        ("plain", "plain.weights.h5: carries no provenance"),
        ("changed", "changed.weights.h5: what it says of itself does not match its digest; the file is damaged"),
        ("none", "none.weights.h5: no such file"),
    ],
)
def test_segment(folder, weights, told):
    code, said = refused(folder, "segment", f"{weights}.weights.h5", *SEGMENT)
    assert code == 1
    assert told in said


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ("decoder", "decoder.weights.h5 holds sam_decoder, which is not a whole SAM with an image encoder"),
        ("changed", "changed.weights.h5: what it says of itself does not match its digest; the file is damaged"),
        ("none", "none.weights.h5: no such file"),
    ],
)
def test_segment_of_a_folder(folder, weights, told):
    code, said = refused(folder, "segment", f"{weights}.weights.h5", ".", "--everything", "-o", "out")
    assert code == 1
    assert told in said


EXPORT = ("--format", "tflite")


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (
            ("sam", *EXPORT, "--part", "decoder"),
            2,
            "the file holds no decoder, but image_encoder, prompt_encoder, mask",
        ),
        (("sam", *EXPORT, "--size", "people=3"), 2, "no input has an axis people; known: images, prompts, points, "),
        (("sam", *EXPORT, "--size", "prompts=0"), 2, "prompts takes a whole number from 1, not 0"),
        (("sam", "--format", "saved_model", "--dtype", "int8-dynamic"), 2, "int8-dynamic is for tflite only"),
        (("sam", "--format", "saved_model", "-o", "there"), 1, "the output there exists; --overwrite replaces it"),
        (("sam", *EXPORT, "--part", "mask_decoder", "-o", "photo.png"), 1, "photo.png must end in .tflite"),
        (("sam", *EXPORT, "--part", "mask_decoder"), 1, "sam_mask_decoder.tflite exists; --overwrite replaces it"),
        (("stack", *EXPORT), 1, "holds the model stack, which is not known here; known: "),
        (("stack", *EXPORT, "--pair", PAIR, "--size", "y.0=3"), 2, "no input has an axis y.0; known: x.0"),
        (("plain", *EXPORT), 1, "plain.weights.h5: carries no provenance"),
        (("config", *EXPORT), 1, "config.weights.h5: its config is not JSON"),
        (("changed", *EXPORT), 1, "changed.weights.h5: what it says of itself does not match its digest"),
    ],
)
def test_export(folder, arguments, code, told):
    name, *others = arguments
    (folder / "sam_mask_decoder.tflite").touch()
    done = refused(folder, "export", f"{name}.weights.h5", *others)
    assert done[0] == code
    assert told in done[1]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("sam.weights.h5", "-o", "out.pth", "--dialect", "klingon"), 2, "sam_vit_b has no dialect klingon"),
        (("sam.weights.h5", "-o", "out.txt"), 1, "must end in .pth"),
        (("stack.weights.h5", "-o", "out.pth"), 2, "no model is named stack"),
        (("plain.weights.h5", "-o", "out.pth"), 1, "carries no provenance"),
    ],
)
def test_restore(folder, arguments, code, told):
    done = refused(folder, "restore", *arguments)
    assert done[0] == code
    assert told in done[1]


def test_that_something_is_shown_by_these_tests(folder):
    """With nothing to refuse a framework is imported, and that fails."""
    code, said = refused(folder, "segment", "sam.weights.h5", *SEGMENT)
    assert (code, "is imported" in said) == (1, True)


def test_load_with_a_level_that_was_not_proven(folder):
    code = ALONE + (
        "import tf_models\n"
        "try: tf_models.load('sam.weights.h5', require='full')\n"
        "except tf_models.WeightsError as error: print(error)"
    )
    done = run("python", "-c", code, cwd=folder)
    assert done.stdout.startswith("sam.weights.h5: was proven to the level none when it was converted, not full: ")
