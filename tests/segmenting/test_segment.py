"""The command `weightbridge segment`: the pictures it reads, what it draws and writes, and how it refuses."""

import inspect
import json
import os
import re

import numpy as np
import pycocotools.mask
import pytest
from PIL import Image
from segment_anything import SamPredictor

import cli
import tf_models
from tests.support.checkpoints import prefixed, save
from tests.support.running import run_forked
from tests.support.sam_sides import overlap, photographs, save_small, small_sides, steep
from tests.support.small_sam import OPTIONS, decoder_state
from tf_models.sam import AutomaticMaskGenerator, rle
from tf_models.segmenting.drawing import Drawn, draw
from tf_models.segmenting.segment import (
    SUFFIXES,
    PictureError,
    PromptError,
    Segmentation,
    check_drawing,
    read_picture,
    segment,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small SAM converted, the same as a torch predictor, and photographs."""
    folder = tmp_path_factory.mktemp("segment")
    save_small(steep(small_sides().torch), folder / "sam.weights.h5")
    Image.fromarray(photographs()["wide"]).save(folder / "photo.png")
    Image.fromarray(photographs()["small"]).save(folder / "small.png")
    return folder


@pytest.fixture(scope="module")
def official(folder):
    predictor = SamPredictor(steep(small_sides().torch))
    predictor.set_image(photographs()["wide"])
    return predictor


# --- Pictures --------------------------------------------------------------------------------------------------------


def saved(folder, image, name="p.png", **options):
    image.save(folder / name, **options)
    return folder / name


def test_pictures_of_every_kind_become_rgb(tmp_path):
    colour = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
    grey, alpha = colour[..., 0], colour[..., 1]
    three = np.repeat(grey[..., None], 3, axis=2)
    deep = grey.astype(np.uint16) * 256 + alpha
    rgba = np.dstack([colour, alpha])
    for image, expected in [
        (Image.fromarray(colour), colour),
        (Image.fromarray(grey), three),
        (Image.fromarray(rgba), colour),
        (Image.fromarray(np.dstack([grey, alpha])), three),
        (Image.fromarray(deep), three),
        (Image.fromarray(grey > 100), np.where(three > 100, 255, 0)),
        (Image.fromarray(colour[:1, :1]), colour[:1, :1]),
    ]:
        got = read_picture(saved(tmp_path, image))
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(read_picture(saved(tmp_path, Image.fromarray(deep), "p.tif")), three)
    for wide in (deep.astype(np.int32), grey.astype(np.int32)):  # 32 bits that hold 16, and 8
        np.testing.assert_array_equal(read_picture(saved(tmp_path, Image.fromarray(wide), "p.tif")), three)


def test_a_picture_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    image = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
    path = saved(tmp_path, Image.fromarray(image), exif=exif)
    np.testing.assert_array_equal(read_picture(path), np.rot90(image, -1))


def test_what_is_not_a_picture(tmp_path):
    photo = saved(tmp_path, Image.fromarray(photographs()["small"]), "photo.png")
    cut = tmp_path / "cut.png"
    cut.write_bytes(photo.read_bytes()[:3000])
    text = tmp_path / "te\x1bxt.png"
    text.write_text("hello")
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    reals = saved(tmp_path, Image.fromarray(np.ones((3, 4), np.float32)), "reals.tif")
    for path, message in [
        (tmp_path / "none.png", "none.png: no such file$"),
        (tmp_path, f"^{tmp_path} is not a file$"),
        (pipe, "is not a file$"),
        (text, r"te\\x1bxt.png is not a picture, or of an unknown format$"),
        (cut, "cut.png is damaged: "),
        (reals, "floating-point numbers"),
    ]:
        with pytest.raises(PictureError, match=message):
            read_picture(path)


def test_too_many_pixels(tmp_path, monkeypatch):
    path = saved(tmp_path, Image.fromarray(photographs()["small"]))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(PictureError, match="has more than 2,000 pixels"):
        read_picture(path)


# --- Masks -----------------------------------------------------------------------------------------------------------


class Told:
    """What is told while it works."""

    def __init__(self):
        self.said = []

    def start(self, stage, total):
        self.said.append((stage, total))

    def advance(self, count):
        self.said.append(count)


def test_one_point_takes_the_best_of_three_masks(folder, official):
    masks, iou, _ = official.predict(np.array([[200, 120]]), np.array([1]))
    told = Told()
    result = segment(folder / "sam.weights.h5", folder / "photo.png", points=[(200, 120)], progress=told)
    assert told.said == [("loading the model", 0), ("encoding", 0), ("masks", 0)]
    (record,) = result.masks
    assert record["predicted_iou"] == pytest.approx(iou.max(), abs=1e-5)
    assert overlap(rle.decode(record["segmentation"])[None], masks[[iou.argmax()]]) >= 0.999
    assert record["point_coords"] == [[200, 120]]
    x, y, w, h = record["bbox"]
    rows, columns = np.nonzero(rle.decode(record["segmentation"]))
    assert (x, y, x + w, y + h) == (columns.min(), rows.min(), columns.max(), rows.max())


def test_points_and_a_box_are_one_object_and_boxes_are_several(folder, official):
    box, other = (20, 30, 300, 200), (5, 5, 90, 100)
    arguments = {"points": [(200, 120)], "background": [(20, 30)], "boxes": [box]}
    (record,) = segment(folder / "sam.weights.h5", folder / "photo.png", **arguments).masks
    masks, iou, _ = official.predict(
        np.array([[200, 120], [20, 30]]), np.array([1, 0]), np.array(box), multimask_output=False
    )
    assert record["predicted_iou"] == pytest.approx(iou[0], abs=1e-5)
    assert overlap(rle.decode(record["segmentation"])[None], masks) >= 0.999
    assert record["point_labels"] == [1, 0]
    result = segment(folder / "sam.weights.h5", folder / "photo.png", boxes=[box, other])
    for record, each in zip(result.masks, (box, other), strict=True):
        masks, _, _ = official.predict(box=np.array(each), multimask_output=False)
        assert overlap(rle.decode(record["segmentation"])[None], masks) >= 0.999
        assert record["box"] == list(each)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "^give a --point, a --box, or --everything$"),
        ({"background": [(1, 1)]}, "beside --background"),
        ({"everything": True, "points": [(1, 1)]}, "--everything takes no --point"),
        ({"points": [(1, 1)], "boxes": [(1, 1, 5, 5)] * 2}, "give one --box with them"),
        ({"points": [(512, 3)]}, "^--point 512,3 lies outside the picture of 512 x 233 pixels$"),
        ({"points": [(1, 3)], "background": [(-0.5, 3)]}, "^--background -0.5,3 lies outside"),
        ({"points": [(float("nan"), 3)]}, "lies outside"),
        ({"boxes": [(9, 1, 5, 8)]}, "^--box 9,1,5,8 is not X0,Y0,X1,Y1 with X0 < X1 and Y0 < Y1$"),
        ({"boxes": [(1, 1, float("inf"), 8)]}, "is not X0,Y0,X1,Y1"),
        ({"boxes": [(600, 1, 700, 8)]}, "lies outside the picture"),
    ],
)
def test_prompts_that_make_no_sense(folder, arguments, message):
    with pytest.raises(PromptError, match=message):
        segment(folder / "sam.weights.h5", folder / "photo.png", **arguments)


def test_weights_of_another_model(folder):
    import converter

    checkpoint = save(prefixed(decoder_state(), "mask_decoder."), folder)
    weights = folder / "decoder.weights.h5"
    converter.convert("sam_decoder", checkpoint, weights, options=OPTIONS, verify="none", overwrite=True)
    with pytest.raises(PictureError, match=r"decoder.weights.h5 holds sam_decoder, which is not a whole SAM"):
        segment(weights, folder / "photo.png", points=[(1, 1)])
    with pytest.raises(tf_models.WeightsError, match=r"photo\.png: is not a readable HDF5 file"):
        segment(folder / "photo.png", folder / "photo.png", points=[(1, 1)])


def test_where_nothing_passes_a_hint_says_what_would(folder):
    arguments = {"weights": folder / "sam.weights.h5", "picture": folder / "small.png", "everything": True}
    told = Told()
    result = segment(**arguments, generator={"points_per_side": 2, "pred_iou_thresh": 0.999}, progress=told)
    assert told.said == [("loading the model", 0), ("encoding", 0), ("points", 4), 4]
    assert result.masks == []
    assert result.hint.startswith("of 12 masks none is above an estimated IoU of 0.999 (the best: 0.9")
    assert result.to_dict()["hint"] == result.hint
    assert str(result).splitlines()[1] == f"hint      {result.hint}"
    advised = {name.replace("-", "_"): float(value) for name, value in re.findall(r"--(\S+) (\S+)", result.hint)}
    again = segment(**arguments, generator={"points_per_side": 2, **advised})
    assert again.masks
    assert again.hint == ""
    assert "hint" not in again.to_dict()


def test_a_picture_too_long_for_sam(folder):
    path = saved(folder, Image.fromarray(np.zeros((1, 3000, 3), np.uint8)), "long.png")
    with pytest.raises(PictureError, match=r"long.png: a picture of 3000 x 1 pixels is too long"):
        segment(folder / "sam.weights.h5", path, points=[(1, 0)])


# --- Drawings --------------------------------------------------------------------------------------------------------


def disc(height, width, x, y, radius):
    rows, columns = np.mgrid[:height, :width]
    return np.hypot(columns - x, rows - y) < radius


@pytest.mark.parametrize("size", [(1, 1), (10, 2500), (700, 3), (137, 101), (600, 800)], ids=str)
def test_a_drawing_of_any_size_has_room_for_a_label(size):
    height, width = size
    mask = rle.encode(disc(height, width, width / 2, height / 2, max(1, min(size) / 3)))
    plain = np.asarray(draw(np.full((*size, 3), 90, np.uint8), [Drawn(mask, "")]))
    drawn = np.asarray(draw(np.full((*size, 3), 90, np.uint8), [Drawn(mask, "1  0.97")], [(0, 0)], [(width - 1, 0)]))
    assert plain.shape == drawn.shape
    assert max(drawn.shape) >= max(512, *size)
    assert min(drawn.shape[:2]) >= 6 * 13
    written = (drawn > 180).all(axis=2)
    assert written[drawn.shape[0] // 4 :].sum() >= 30, "the label's text is white"


def test_what_is_drawn_where():
    image = np.random.default_rng(0).integers(80, 120, (600, 800, 3), np.uint8)
    large, small = disc(600, 800, 300, 300, 200), disc(600, 800, 300, 420, 40)
    drawn = np.asarray(draw(image, [Drawn(rle.encode(small), ""), Drawn(rle.encode(large), "", (50, 60, 700, 580))]))
    assert drawn.shape == image.shape
    changed = (drawn != image).any(axis=2)
    np.testing.assert_array_equal(changed[100:500, 105:495], large[100:500, 105:495])  # but for the box
    assert changed[60, 50:700].all()
    assert not changed[:55].any()
    centre_small, centre_large = drawn[420, 300].astype(int), drawn[250, 300].astype(int)
    assert abs(centre_small - centre_large).max() > 40, "two masks differ in colour, and the small one is above"
    points = np.asarray(draw(image, [], [(100, 100)], [(700, 500)])).astype(int)
    assert points[104, 104, 1] > points[104, 104, 0] + 50, "green is the object"
    assert points[504, 704, 0] > points[504, 704, 1] + 50, "red is beside it"


def test_a_crowd_of_masks_has_no_label_upon_another(monkeypatch):
    from tf_models.segmenting import drawing

    plates = []
    overlapping = drawing._overlap
    monkeypatch.setattr(drawing, "_overlap", lambda a, b: plates.append((a, b)) or overlapping(a, b))
    masks = [Drawn(rle.encode(disc(600, 800, 400, 300, 9 + number)), f"{number}") for number in range(40)]
    draw(np.zeros((600, 800, 3), np.uint8), masks)
    kept = {b for _, b in plates}
    assert 2 <= len(kept) < 40
    assert not any(overlapping(a, b) for a in kept for b in kept if a != b)


def test_an_empty_mask_is_drawn_as_nothing():
    image = np.full((600, 800, 3), 9, np.uint8)
    drawn = draw(image, [Drawn(rle.encode(np.zeros((600, 800), bool)), "1  0.10")])
    np.testing.assert_array_equal(drawn, image)


def test_data_and_mask_files(tmp_path):
    mask = disc(60, 80, 30, 20, 15)
    record = {"segmentation": rle.encode(mask), "area": 1, "bbox": [0, 0, 1, 1], "predicted_iou": 0.5}
    result = Segmentation(np.zeros((60, 80, 3), np.uint8), [record, record])
    data = json.loads(json.dumps(result.to_dict()))
    assert (data["height"], data["width"]) == (60, 80)
    np.testing.assert_array_equal(pycocotools.mask.decode(data["masks"][1]["segmentation"]), mask)
    result.save_masks(tmp_path / "masks")
    assert sorted(os.listdir(tmp_path / "masks")) == ["1.png", "2.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "masks" / "2.png")), mask)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_thin_lines_keep_their_colour_in_every_format(tmp_path, suffix):
    photo = photographs()["wide"]
    prompted = {"segmentation": rle.encode(np.zeros(photo.shape[:2], bool)), "predicted_iou": 0.5}
    result = Segmentation(photo, [prompted | {"box": [40, 30, 400, 200]}])
    path = tmp_path / f"drawn{suffix.upper()}"
    result.save_drawing(path)
    with Image.open(path) as drawn:
        difference = np.abs(np.asarray(drawn, np.float32) - np.asarray(result.drawing(), np.float32))
    assert difference[25:205, 35:405].mean() < 2
    assert np.quantile(difference[28:33, 60:380], 0.99) < 10  # along the upper side of the box


def test_a_drawing_too_long_for_its_format_is_refused_at_once(tmp_path):
    long = saved(tmp_path, Image.new("RGB", (17000, 2)), "long.png")
    check_drawing(tmp_path / "o.png", read_picture(long))
    image = read_picture(long)
    with pytest.raises(
        PictureError, match=r"^o.WEBP holds at most 16383 pixels along a side, and the picture has 17000"
    ):
        check_drawing(tmp_path / "o.WEBP", image)
    result = Segmentation(np.zeros((2, 17000, 3), np.uint8), [])
    with pytest.raises(PictureError, match=r"^a WEBP file cannot hold the drawing: "):
        result.save_drawing(tmp_path / "o.webp")


# --- The command -----------------------------------------------------------------------------------------------------


def weightbridge(folder, *arguments):
    return run_forked("weightbridge", "segment", "sam.weights.h5", *arguments, cwd=folder)


def test_the_command_draws_and_writes(folder):
    prompts = ("--point", "200,120", "--background", "20,30", "--box", "10,20,400,220")
    done = weightbridge(folder, "photo.png", *prompts, "-o", "out.png", "--masks", "masks")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0] == "picture   512 x 233 pixels, masks 1"
    assert lines[1].startswith("mask    1 iou 0.")
    assert lines[2:] == ["written   out.png", "written   masks"]
    drawn, photo = np.asarray(Image.open(folder / "out.png")), photographs()["wide"]
    assert drawn.shape == photo.shape
    mask = np.asarray(Image.open(folder / "masks" / "1.png"))
    assert (drawn != photo).any(axis=2)[mask].mean() > 0.9

    done = weightbridge(folder, "photo.png", *prompts, "-o", "out.png")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: the output out.png exists; --overwrite replaces it\n"
    done = weightbridge(folder, "photo.png", *prompts, "--masks", "masks")
    assert done.stderr == "error: masks is not an empty folder; name a new one for the masks\n"
    done = weightbridge(folder, "photo.png", *prompts, "-o", "out.png", "--overwrite", "--json")
    data = json.loads(done.stdout)
    np.testing.assert_array_equal(pycocotools.mask.decode(data["masks"][0]["segmentation"]), mask)


@pytest.mark.slow
def test_the_command_finds_everything(folder):
    done = weightbridge(folder, "small.png", "--everything", "-o", "all.png", "--json")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    qualities = [mask["predicted_iou"] for mask in data["masks"]]
    assert qualities
    assert qualities == sorted(qualities, reverse=True)
    with Image.open(folder / "all.png") as drawn:
        assert drawn.size == (404, 548)  # 4 times 101 x 137


def test_the_generator_gets_its_options_and_only_those_that_are_given(folder, monkeypatch):
    given = {
        "points_per_side": 3,
        "pred_iou_thresh": 0.5,
        "stability_score_thresh": 0.1,
        "box_nms_thresh": 1.0,
        "crop_n_layers": 1,
        "min_mask_region_area": 5,
    }
    assert given.keys() <= inspect.signature(AutomaticMaskGenerator).parameters.keys()
    asked = []

    def instead(*arguments):
        *_, generating, like = arguments
        assert like is None
        asked.append(generating)
        return Segmentation(np.zeros((3, 4, 3), np.uint8), [])

    monkeypatch.setattr("tf_models.segmenting.segment.segment", instead)
    command = ["segment", "sam.weights.h5", str(folder / "photo.png"), "--everything", "--json"]
    for options in (given, dict([next(iter(given.items()))]), {}):
        words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        cli.main.commands["segment"].main([*command[1:], *words], standalone_mode=False)
        assert asked.pop() == options


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("photo.png", "--point", "1", "-o", "o.png"), 2, "Invalid value for '--point': '1' is not X,Y"),
        (("photo.png", "--box", "1,2,3,x", "-o", "o.png"), 2, "'1,2,3,x' is not X0,Y0,X1,Y1"),
        (("photo.png", "--point", "1,1"), 2, "nothing is to be written: give --output, --masks or --json"),
        (("photo.png", "-o", "o.png"), 2, "give a --point, a --box, or --everything"),
        (("photo.png", "--point", "1,1", "-o", "o.txt"), 1, "the output o.txt must end in .png or .jpg"),
        (("none.png", "--point", "1,1", "-o", "o.png"), 1, "none.png: no such file\n"),
        (("nope/", "--everything", "-o", "o"), 1, "nope/: no such folder\n"),
        (("nope", "--everything", "-o", "o"), 1, "nope: no such file or folder\n"),
        (("nope/", "--prompts", "p.jsonl", "-o", "o"), 1, "nope/: no such folder\n"),
        (("photo.png", "--everything", "--pred-iou-thresh", "2", "-o", "o.png"), 2, "2.0 is not in the range 0<=x<=1"),
        (
            ("photo.png", "--point", "1,1", "--box-nms-thresh", ".5", "-o", "o.png"),
            2,
            "--box-nms-thresh is for --every",
        ),
    ],
)
def test_the_command_refuses_in_one_line(folder, arguments, code, message):
    done = weightbridge(folder, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not (folder / "o.png").exists()
