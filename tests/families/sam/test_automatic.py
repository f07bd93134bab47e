"""The automatic mask generator against segment-anything's on photographs, with the same weights."""

import re

import numpy as np
import pytest
from segment_anything import SamAutomaticMaskGenerator

from tests.support.carrying import twin
from tests.support.sam_sides import Sides, photographs, small_sides, steep
from tests.support.small_sam import CONFIG
from tf_models.sam import AutomaticMaskGenerator, Predictor, rle
from tf_models.segmenting.segment import _hint

LENIENT = {
    "points_per_side": 4,
    "points_per_batch": 7,
    "pred_iou_thresh": 0.0,
    "stability_score_thresh": 0.5,
    "box_nms_thresh": 1.0,  # masks of seeded weights reach all over the picture
}


@pytest.fixture(scope="module")
def sides():
    sam = steep(small_sides().torch)
    return Sides(sam, sam, twin("sam_vit_b", CONFIG, sam.state_dict()))


@pytest.fixture(scope="module")
def predictor(sides):
    """Its graphs take seconds to trace, and are the same for every generator of the model."""
    return Predictor(sides.keras)


@pytest.fixture(autouse=True)
def _traced_once(sides, predictor, monkeypatch):
    def of(model):
        assert model is sides.keras
        predictor.reset_image()
        return predictor

    monkeypatch.setattr("tf_models.sam.automatic.Predictor", of)


def both(sides, image, **options):
    options = LENIENT | options
    return (
        AutomaticMaskGenerator(sides.keras, **options).generate(image),
        SamAutomaticMaskGenerator(sides.torch, **options).generate(image),
    )


def compare(ours, theirs, least):
    """The same records in the same order; a pixel may differ where its logit is within rounding of the threshold."""
    assert len(ours) == len(theirs) >= least
    for got, expected in zip(ours, theirs, strict=True):
        assert list(got) == list(expected)
        a, b = got["segmentation"], expected["segmentation"]
        assert (a ^ b).sum() <= max(2, 1e-4 * (a | b).sum())
        pixels = max(2, 1e-4 * expected["area"])  # at the edge, which may fall on either side of a threshold
        assert abs(got["area"] - expected["area"]) <= pixels
        assert got["area"] == a.sum()
        assert all(isinstance(side, int) for side in got["bbox"])
        assert abs(np.array(got["bbox"]) - expected["bbox"]).max() <= 1
        assert abs(got["predicted_iou"] - expected["predicted_iou"]) < 1e-5
        # A ratio of two areas, of which the one below is the mask's own at least.
        most = 2 * pixels / max(expected["area"] - pixels, 1)
        np.testing.assert_allclose(got["stability_score"], expected["stability_score"], rtol=0, atol=most)
        assert got["point_coords"] == expected["point_coords"]
        assert got["crop_box"] == expected["crop_box"]


@pytest.mark.parametrize("name", ["small", "wide"])
def test_records_of_photographs(sides, name):
    compare(*both(sides, photographs()[name]), least=5)


def raise_threshold(monkeypatch, sides, threshold):
    """Leave small and distinct masks."""
    monkeypatch.setattr(sides.torch, "mask_threshold", threshold)
    monkeypatch.setattr(sides.keras, "mask_threshold", threshold)


def test_duplicates_are_dropped(sides, monkeypatch):
    raise_threshold(monkeypatch, sides, 40.0)
    ours, theirs = both(sides, photographs()["wide"], points_per_side=6, box_nms_thresh=0.7)
    compare(ours, theirs, least=3)


def test_crops(sides, monkeypatch):
    raise_threshold(monkeypatch, sides, 50.0)  # some masks are empty now: they are kept as by segment-anything
    options = {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2, "stability_score_thresh": 0.0}
    ours, theirs = both(sides, photographs()["wide"], **options, crop_nms_thresh=0.8)
    compare(ours, theirs, least=10)
    assert len({tuple(record["crop_box"]) for record in ours}) > 1


@pytest.mark.usefixtures("opencv")
def test_small_regions(sides):
    image = photographs()["small"]
    ours, theirs = both(sides, image, min_mask_region_area=150)
    compare(ours, theirs, least=5)
    plain = AutomaticMaskGenerator(sides.keras, **LENIENT).generate(image)
    assert [record["area"] for record in plain] != [record["area"] for record in ours]


def test_filters(sides):
    image = photographs()["small"]
    every = both(sides, image, stability_score_thresh=0.0)
    compare(*every, least=40)
    middle = float(np.median([record["predicted_iou"] for record in every[1]]))
    ours, theirs = both(sides, image, pred_iou_thresh=middle, stability_score_offset=2.0)
    compare(ours, theirs, least=2)
    assert both(sides, image, pred_iou_thresh=99.0) == ([], [])


def test_given_points_and_output_modes(sides):
    image = photographs()["small"]
    options = {"points_per_side": None, "point_grids": [np.random.default_rng(0).random((5, 2)).tolist()]}
    masks, theirs = both(sides, image, **options)
    compare(masks, theirs, least=2)
    plain, coco = (
        AutomaticMaskGenerator(sides.keras, **LENIENT | options, output_mode=mode).generate(image)
        for mode in ("uncompressed_rle", "coco_rle")
    )
    for mask, run_lengths, text in zip(masks, plain, coco, strict=True):
        np.testing.assert_array_equal(rle.decode(run_lengths["segmentation"]), mask["segmentation"])
        assert rle.to_coco(run_lengths["segmentation"]) == text["segmentation"]


def test_the_picture_is_encoded_once_for_each_crop_and_progress_is_told(sides, monkeypatch):
    generator = AutomaticMaskGenerator(sides.keras, **LENIENT, crop_n_layers=1, crop_n_points_downscale_factor=3)
    encoded, said = [], []
    encode = generator.predictor._encode
    monkeypatch.setattr(generator.predictor, "_encode", lambda image: encoded.append(1) or encode(image))

    class Progress:
        def start(self, stage, total):
            said.append((stage, total))

        def advance(self, count):
            said.append(count)

    generator.generate(photographs()["small"], Progress())
    assert len(encoded) == 5
    whole = [("encoding, crop 1 of 5", 0), ("points, crop 1 of 5", 16), 7, 7, 2]
    assert said[:5] == whole
    assert said[5:] == [
        one for n in (2, 3, 4, 5) for one in ((f"encoding, crop {n} of 5", 0), (f"points, crop {n} of 5", 1), 1)
    ]


@pytest.mark.parametrize(
    ("thresholds", "told"),
    [
        ((0.9999, 0.0), r"^of 48 masks none is above an estimated IoU of 0.9999 \(the best: 0.9"),
        (
            (0.0, 1.0),
            r"^of 48 masks 48 are above an estimated IoU of 0 \(.* the best stability of those is 0\.\d\d ",
        ),
        ((0.9999, 1.0), r"none is above .* and its stability is 0\.\d\d \(asked for: 1\)"),
    ],
)
def test_where_nothing_passes_it_is_known_what_would(sides, thresholds, told):
    image = photographs()["small"]
    options = LENIENT | dict(zip(("pred_iou_thresh", "stability_score_thresh"), thresholds, strict=True))
    finder = AutomaticMaskGenerator(sides.keras, **options)
    assert finder.generate(image) == []
    hint = _hint(finder)
    assert re.search(told, hint)
    advised = {name.replace("-", "_"): float(value) for name, value in re.findall(r"--(\S+) (\S+)", hint)}
    assert advised.keys() == {name for name in ("pred_iou_thresh", "stability_score_thresh") if options[name] > 0}
    found = AutomaticMaskGenerator(sides.keras, **options | advised).generate(image)
    assert found
    for name, score in (("pred_iou_thresh", "predicted_iou"), ("stability_score_thresh", "stability_score")):
        best = max(record[score] for record in found)
        assert name not in advised or best - 0.02 < advised[name] < best, "no lower than it must be"
    assert finder.seen.iou == pytest.approx(max(record["predicted_iou"] for record in both(sides, image)[0]), abs=0.01)


def test_masks_that_all_reach_the_edge_of_a_crop(sides, monkeypatch):
    monkeypatch.setattr("tf_models.sam.automatic.near_crop_edge", lambda boxes, *_: [True])
    finder = AutomaticMaskGenerator(sides.keras, **LENIENT)
    assert finder.generate(photographs()["small"]) == []
    assert re.search(r"^\d+ of 48 masks pass the thresholds, and all reach the edge of a crop$", _hint(finder))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points_per_side": None}, "expected exactly one"),
        ({"point_grids": [np.zeros((1, 2))]}, "expected exactly one"),
        ({"output_mode": "png"}, "output_mode: expected one of binary_mask, uncompressed_rle, coco_rle, got 'png'"),
        ({"points_per_side": None, "point_grids": [np.zeros((1, 2))], "crop_n_layers": 1}, "one for each of 2 layers"),
    ],
)
def test_bad_options(sides, options, message):
    with pytest.raises(ValueError, match=message):
        AutomaticMaskGenerator(sides.keras, **options)
