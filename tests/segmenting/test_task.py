"""Segmenting as a task over many pictures: the masks of `segment`, in COCO files, by the command."""

import json
import shlex

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

import tf_models
from tests.support.running import run_forked
from tests.support.sam_sides import photographs, save_small, small_sides, steep
from tf_models.pictures.handler import Picture
from tf_models.sam import AutomaticMaskGenerator, rle
from tf_models.segmenting.segment import PictureError, PromptError, segment
from tf_models.segmenting.task import Segmenting

GRID = {"points_per_side": 3, "pred_iou_thresh": 0.5, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}
PROMPTS = {"points": [[60, 50]], "background": [[5, 5]], "boxes": [[10, 20, 90, 110]]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small SAM converted, and pictures of two sizes, one of which is broken."""
    folder = tmp_path_factory.mktemp("task")
    save_small(steep(small_sides().torch), folder / "sam.weights.h5")
    (folder / "pictures").mkdir()
    for number, image in enumerate(images()):
        Image.fromarray(image).save(folder / "pictures" / f"{number}.png")
    (folder / "pictures" / "broken.jpg").write_bytes(b"")
    return folder


def images():
    small = photographs()["small"]  # (137, 101)
    return [small, np.ascontiguousarray(small[:, ::-1]), np.ascontiguousarray(small[:70])]


def kept(annotations):
    """As records of `segment`, with masks that can be compared."""
    added = ("category_id", "iscrowd")
    return [{key: value for key, value in one.items() if key not in added} for one in annotations]


@pytest.fixture(scope="module")
def call(folder):
    return Segmenting(GRID).load(folder / "sam.weights.h5")


def test_masks_are_those_of_a_single_picture(folder, call):
    first, second, _ = images()
    asked = segment(folder / "sam.weights.h5", folder / "pictures" / "0.png", [(60, 50)], [(5, 5)], [(10, 20, 90, 110)])
    ((prompted,), everything) = call([Picture(first, {"picture": "0.png", **PROMPTS}), Picture(second)])
    (expected,) = asked.to_dict()["masks"]
    assert prompted.keys() - expected.keys() == {"category_id", "iscrowd"}
    assert prompted["predicted_iou"] == pytest.approx(expected["predicted_iou"], abs=1e-5)
    assert prompted["area"] == pytest.approx(expected["area"], rel=1e-3)
    assert prompted["point_labels"] == [1, 0]
    generator = AutomaticMaskGenerator(tf_models.load(folder / "sam.weights.h5"), **GRID, output_mode="coco_rle")
    found = sorted(generator.generate(second), key=lambda mask: -mask["predicted_iou"])
    assert len(found) > 1
    (alone,) = call([Picture(second)])
    assert kept(alone) == found
    assert [one["category_id"] for one in everything] == [1] * len(found)
    for one, other in zip(everything, found, strict=True):
        assert one["predicted_iou"] == pytest.approx(other["predicted_iou"], abs=1e-5)
        assert one["area"] == pytest.approx(other["area"], rel=1e-3)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"points": [[1, 2, 3]]}, "^points is not a list of 2 numbers each$"),
        ({"boxes": [[1, 2, 3, "4"]]}, "^boxes is not a list of 4 numbers each$"),
        ({"points": 3}, "^points is not a list"),
        ({"points": [[500, 2]]}, "lies outside the picture of 101 x 137 pixels$"),
        ({"background": [[5, 2]]}, "beside --background$"),
    ],
)
def test_prompts_that_make_no_sense(call, entry, message):
    with pytest.raises((PictureError, PromptError), match=message):
        call([Picture(images()[0], entry)])


def test_the_command_over_a_folder(folder):
    names = ["0.png", "1.png", "2.png", "broken.jpg"]
    lines = [json.dumps({"picture": name, "points": [[60, 50]]}) for name in names]
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    command = ("sam.weights.h5", "pictures", "--prompts", "prompts.jsonl", "-o", "results", "--batch-size", "2")
    done = run_forked("weightbridge", "segment", *command, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "pictures  4, annotations 3",
        "broken    1, listed in errors.json",
        "written   results",
    ]
    coco = COCO(folder / "results" / "part-00000.json")
    images = coco.loadImgs(coco.getImgIds())
    assert [image["file_name"] for image in images] == ["0.png", "1.png", "2.png"]
    (one,) = coco.loadAnns(coco.getAnnIds(imgIds=images[1]["id"]))
    (record,) = segment(folder / "sam.weights.h5", folder / "pictures" / "1.png", points=[(60, 50)]).masks
    mask = coco.annToMask(one).astype(bool)
    assert (mask != rle.decode(record["segmentation"])).mean() < 1e-3
    assert one["area"] == mask.sum()
    done = run_forked("weightbridge", "segment", *command, "--json", cwd=folder)
    reason = "broken.jpg is not a picture, or of an unknown format"
    assert json.loads(done.stdout) == {
        "pictures": 4,
        "annotations": 3,
        "errors": [{"file_name": "broken.jpg", "reason": reason}],
    }


@pytest.mark.slow
def test_the_command_finds_everything_in_a_folder(folder):
    done = run_forked(
        "weightbridge", "segment", "sam.weights.h5", "pictures", "--everything", "-o", "all", "--",
        "--runner", "DirectRunner", cwd=folder,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    part = json.loads((folder / "all" / "part-00000.json").read_text())
    assert [one["file_name"] for one in part["images"]] == ["0.png", "1.png", "2.png"]
    for image in part["images"]:
        alone = segment(folder / "sam.weights.h5", folder / "pictures" / image["file_name"], everything=True).masks
        assert sum(one["image_id"] == image["id"] for one in part["annotations"]) == len(alone)
    assert part["annotations"]


def test_what_is_said_of_like_can_be_done(folder, monkeypatch):
    """The line holds a program; that one's file is segmented without --like."""
    monkeypatch.chdir(folder)
    tf_models.load("sam.weights.h5").save_weights("keras.weights.h5")
    done = run_forked(
        "weightbridge",
        "segment",
        "keras.weights.h5",
        "pictures",
        "--everything",
        "-o",
        "o",
        "--like",
        "sam.weights.h5",
        cwd=folder,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    told, _, program = done.stderr.rstrip("\n").partition(": python -c ")
    assert told == "error: --like is for a single picture; write a file that needs none, and name that"
    exec(shlex.split(program)[0], {})
    Segmenting(GRID).check("new.weights.h5")
    with pytest.raises(ValueError, match="carries no provenance"):
        Segmenting(GRID).check("keras.weights.h5")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("pictures", "--everything"), 2, "give --output, the folder of the results"),
        (("pictures", "-o", "o"), 2, "of a folder, give --everything, or --prompts with"),
        (
            ("pictures", "-o", "o", "--everything", "--prompts", "p.jsonl"),
            2,
            "of a folder, give --everything, or --prompts",
        ),
        (("pictures", "-o", "o", "--point", "1,1"), 2, "are for a single picture"),
        (("gs://bucket/x", "-o", "o", "--masks", "m"), 2, "are for a single picture"),
        (
            ("pictures/0.png", "-o", "o.png", "--everything", "--", "--runner", "X"),
            2,
            "pictures/0.png is a single picture;",
        ),
        (("pictures/0.png", "-o", "o.png", "--everything", "--retry"), 2, "pictures/0.png is a single picture;"),
        (("none.txt", "-o", "o", "--everything"), 1, "none.txt cannot be read: No such file or directory"),
        (("pictures", "-o", "sam.weights.h5", "--everything"), 1, "sam.weights.h5 cannot be written: Not a directory"),
        (("pictures", "-o", "o", "--everything", "--", "--runner=Foo"), 1, "Beam refuses its options: --runner Foo: "),
        (("pictures", "-o", "o", "--everything", "--", "--runer=x"), 1, "Beam refuses its options: unknown option --r"),
        (("pictures", "-o", "o", "--prompts", "none"), 1, "none cannot be read: No such file"),
    ],
)
def test_the_command_refuses_in_one_line(folder, arguments, code, message):
    done = run_forked("weightbridge", "segment", "sam.weights.h5", *arguments, cwd=folder)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert "unexpected" not in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (folder / "o").exists()
