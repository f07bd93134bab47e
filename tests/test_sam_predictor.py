"""The predictor against segment-anything's on photographs, with the same weights; float64 is the truth."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from segment_anything import SamPredictor

from tests.whole_sam import SIDE, large_sides, photographs, small_sides
from tf_models.sam import Predictor
from tf_models.sam.transforms import ResizeLongestSide


def prompts(height, width):
    """Prompts by name, each the arguments of `predict`; "mask" and "all" lack the mask of an earlier answer."""
    points = np.array([[0.3 * width, 0.4 * height], [0.7 * width, 0.2 * height], [0.5 * width, 0.9 * height]])
    labels, box = np.array([1, 0, 1]), np.array([0.1 * width, 0.2 * height, 0.8 * width, 0.9 * height])
    return {
        "point": {"point_coords": points[:1], "point_labels": labels[:1]},
        "points": {"point_coords": points, "point_labels": labels, "multimask_output": False},
        "box": {"box": box},
        "box row": {"box": box[None], "multimask_output": False},
        "both": {"point_coords": points, "point_labels": labels, "box": box},
        "none": {},
        "not a point": {"point_coords": points, "point_labels": np.array([1, -1, 0])},
        "outside": {"point_coords": points * 2 - 99, "point_labels": labels},
        "inverted": {"box": box[[2, 3, 0, 1]]},
        "corners, labels of no points": {"box": box.reshape(2, 2), "point_labels": labels},
        "mask": {"mask_input": None},
        "all": {"point_coords": points[:2], "point_labels": labels[:2], "box": box, "mask_input": None},
    }


class Errors:
    """The largest errors of both sides over many prompts: a handful of numbers says little about torch's own."""

    def __init__(self):
        self.ours, self.own, self.scale = (np.zeros(3) for _ in range(3))

    def add(self, ours, own, truth):
        for index, values in enumerate(zip(ours, own, truth, strict=True)):
            assert values[0].shape == values[2].shape
            assert values[0].dtype == np.float32
            self.ours[index] = max(self.ours[index], np.abs(values[0] - values[2]).max())
            self.own[index] = max(self.own[index], np.abs(values[1] - values[2]).max())
            self.scale[index] = max(self.scale[index], np.abs(values[2]).max())

    def check(self):
        allowed = np.maximum(4 * self.own, 8 * 2.0**-24 * self.scale)
        assert (self.ours <= allowed).all(), f"logits, iou, low: {self.ours}; torch's own {self.own}"


def overlap(a, b):
    """The least IoU over masks (K, H, W); two empty masks agree."""
    shared, either = (a & b).sum(axis=(-2, -1)), (a | b).sum(axis=(-2, -1))
    return np.where(either == 0, 1, shared / np.maximum(either, 1)).min()


def compare(sides, ours, images, names):
    official, double = SamPredictor(sides.torch), SamPredictor(sides.double)
    errors, both_signs = Errors(), 0
    for image in images:
        for predictor in (official, double, ours):
            predictor.set_image(image)
        assert ours.original_size == image.shape[:2]
        assert ours.input_size == official.input_size
        earlier = None
        for name in names:
            arguments = prompts(*image.shape[:2])[name]
            arguments = {key: earlier if value is None else value for key, value in arguments.items()}
            own, truth, got = (one.predict(**arguments, return_logits=True) for one in (official, double, ours))
            errors.add(got, own, truth)
            masks, iou, low = ours.predict(**arguments)
            theirs = own[0] > sides.torch.mask_threshold
            assert masks.dtype == bool
            assert overlap(masks, theirs) >= 0.9999, name
            np.testing.assert_array_equal(masks, got[0] > 0)
            np.testing.assert_array_equal(iou, got[1])
            both_signs += sum(0.02 < share < 0.98 for share in theirs.mean(axis=(1, 2)))
            earlier = low[:1]
    errors.check()
    assert both_signs > len(names) * len(images), "most masks have to be more than all or nothing"


@pytest.fixture(scope="module")
def sides():
    return small_sides()


@pytest.fixture(scope="module")
def spare(sides):
    """For whatever picture a test sets: the graphs, which take seconds to trace, serve any."""
    return Predictor(sides.keras)


@pytest.fixture
def ours(spare):
    spare.set_image(photographs()["wide"])
    return spare


@pytest.mark.parametrize("name", ["portrait", "wide"])
def test_masks_of_photographs(sides, spare, name):
    compare(sides, spare, [photographs()[name]], ["point", "points", "box", "all"])


def test_masks_of_every_kind_of_prompt(sides, spare):
    compare(sides, spare, [photographs()["small"]], list(prompts(1, 1)))


@pytest.mark.slow
def test_masks_of_photographs_by_vit_b():
    images = [photographs()[name] for name in ("portrait", "large")]
    compare(large_sides(), Predictor(large_sides().keras), images, ["point", "points", "box", "both", "all"])


def test_embedding_in_the_official_order_of_axes(sides, ours):
    official, double = SamPredictor(sides.torch), SamPredictor(sides.double)
    for predictor in (official, double):
        predictor.set_image(photographs()["wide"])
    truth = double.get_image_embedding().numpy()
    own = official.get_image_embedding().numpy()
    got = ours.get_image_embedding()
    assert got.shape == own.shape
    assert got.dtype == np.float32
    assert abs(got - truth).max() <= 4 * abs(own - truth).max()


def test_bgr(ours):
    expected = ours.get_image_embedding()
    ours.set_image(photographs()["wide"][..., ::-1], image_format="BGR")
    np.testing.assert_array_equal(ours.get_image_embedding(), expected)


def test_an_extreme_picture(sides, spare):
    rng = np.random.default_rng(0)
    for shape in [(1, 1, 3), (10, 2500, 3)]:
        compare_one(sides, spare, rng.integers(0, 256, shape, np.uint8))


def compare_one(sides, ours, image):
    official = SamPredictor(sides.torch)
    for predictor in (official, ours):
        predictor.set_image(image)
    arguments = {"point_coords": np.array([[0, 0]]), "point_labels": np.array([1]), "return_logits": True}
    for a, b in zip(ours.predict(**arguments), official.predict(**arguments), strict=True):
        assert a.shape == b.shape
        assert abs(a - b).max() < 1e-4


def test_many_prompts_in_one_call_are_those_of_single_calls(ours):
    rng = np.random.default_rng(1)
    corners = rng.uniform(0, 200, (9, 2, 2))
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    points, labels = rng.uniform(0, 200, (9, 2, 2)), rng.integers(0, 2, (9, 2))
    earlier = rng.standard_normal((9, 1, SIDE // 4, SIDE // 4)).astype(np.float32)
    for given in ({"boxes": boxes}, {"point_coords": points, "point_labels": labels}, {"mask_input": earlier}):
        many = ours.predict(**given, return_logits=True)
        assert [len(result) for result in many] == [9, 9, 9]
        for index in (0, 3, 8):
            one = {key.replace("boxes", "box"): value[index] for key, value in given.items()}
            for several, single in zip(many, ours.predict(**one, return_logits=True), strict=True):
                np.testing.assert_allclose(several[index], single, rtol=0, atol=2e-5)
    masks, iou, low = ours.predict(boxes=boxes[:1], multimask_output=False)
    assert (masks.shape[:2], iou.shape, low.shape[:2]) == ((1, 1), (1, 1), (1, 1))
    masks, iou, low = ours.predict(boxes=np.zeros((0, 4)))
    assert (masks.shape, iou.shape, len(low)) == ((0, 3, 233, 512), (0, 3), 0)


def test_many_prompts_against_the_official_batches(sides, ours):
    import torch

    official = SamPredictor(sides.torch)
    official.set_image(photographs()["wide"])
    boxes = torch.tensor([[10.0, 20, 200, 180], [300, 5, 500, 230], [0, 0, 40, 40]])
    points, labels = torch.rand(3, 4, 2) * 200, torch.randint(0, 2, (3, 4))
    scaled = official.transform.apply_boxes_torch(boxes, (233, 512))
    theirs = official.predict_torch(points, labels, scaled)
    got = ours.predict_tf(points.numpy(), labels.numpy(), ours.transform.apply_boxes(boxes.numpy(), (233, 512)))
    for a, b in zip(got, theirs, strict=True):
        assert a.shape == tuple(b.shape)
    assert overlap(got[0], theirs[0].numpy()) >= 0.9999


def test_several_pictures(sides, spare):
    images = [photographs()[name] for name in ("portrait", "small")]
    together, alone = Predictor(sides.keras), spare
    together.set_image_batch(images)
    point, boxes = np.array([[30, 40]]), np.array([[5, 5, 90, 60], [1, 2, 30, 40]])
    results = together.predict_batch(
        [point, None], [np.array([1]), None], [None, boxes], multimask_output=False, return_logits=True
    )
    for index, arguments in enumerate([{"point_coords": point, "point_labels": np.array([1])}, {"boxes": boxes}]):
        alone.set_image(images[index])
        expected_results = alone.predict(**arguments, multimask_output=False, return_logits=True)
        for got, expected in zip(results, expected_results, strict=True):
            np.testing.assert_array_equal(got[index], expected)
    with pytest.raises(RuntimeError, match="2 images are set; call predict_batch"):
        together.predict()
    with pytest.raises(ValueError, match="box_batch: expected an entry for each of 2 images, got 1"):
        together.predict_batch(box_batch=[boxes])


def test_a_batch_of_floating_point_pictures(spare):
    image = photographs()["wide"]
    scaled = ResizeLongestSide(SIDE).apply_images(tf.constant(image[None], tf.float32))
    predictor = spare
    predictor.set_tf_image(tf.repeat(scaled, 2, axis=0), image.shape[:2])
    masks = predictor.predict_batch()[0]
    np.testing.assert_array_equal(*masks)
    predictor.set_image(image)
    assert overlap(masks[0], predictor.predict()[0]) > 0.98, "rounding to uint8 moves few pixels"
    with pytest.raises(ValueError, match=r"expected \(N, h, w, 3\) with a long side of 256"):
        predictor.set_tf_image(tf.constant(image[None]), image.shape[:2])


def test_one_graph_serves_any_number_of_prompts_and_any_picture(sides):
    predictor = Predictor(sides.keras)
    for name in ("wide", "small"):
        predictor.set_image(photographs()[name])
        for count in (1, 2, 5):
            predictor.predict(point_coords=np.ones((count, 2)), point_labels=np.ones(count))
            predictor.predict(point_coords=np.ones((count, 3, 2)), point_labels=np.ones((count, 3)))
    assert len(predictor._decoders) == 1


def test_no_picture_is_set(sides):
    predictor = Predictor(sides.keras)
    for call in (predictor.predict, predictor.get_image_embedding, predictor.predict_batch):
        with pytest.raises(RuntimeError, match="no image is set"):
            call()
    predictor.set_image(photographs()["small"])
    assert predictor.is_image_set
    predictor.reset_image()
    assert predictor.features is None
    with pytest.raises(RuntimeError, match="no image is set"):
        predictor.predict()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((9, 8), np.uint8), r"image: expected \(H, W, 3\) of uint8, got \(9, 8\) of uint8"),
        (np.zeros((9, 8, 4), np.uint8), r"got \(9, 8, 4\) of uint8"),
        (np.zeros((9, 8, 3), np.uint16), r"got \(9, 8, 3\) of uint16"),
        (np.zeros((0, 8, 3), np.uint8), r"got \(0, 8, 3\)"),
        (np.zeros((1, 3000, 3), np.uint8), "a picture of 3000 x 1 pixels is too long"),
    ],
)
def test_bad_pictures_leave_the_one_before(ours, image, message):
    with pytest.raises(ValueError, match=message):
        ours.set_image(image)
    assert ours.original_size == (233, 512)
    assert ours.features is not None
    with pytest.raises(ValueError, match="image_format: expected 'RGB' or 'BGR', got 'rgb'"):
        ours.set_image(image, "rgb")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"point_coords": np.ones((2, 2))}, "point_coords, point_labels: expected both or neither"),
        ({"point_coords": np.ones((2, 2)), "point_labels": [1]}, r"point_labels: expected the shape \(1, 2\)"),
        (
            {"point_coords": np.ones((2, 3)), "point_labels": [1, 1]},
            r"point_coords: expected the shape \(any, any, 2\)",
        ),
        ({"box": np.ones((2, 4))}, "many boxes go into boxes"),
        ({"box": np.ones(4), "boxes": np.ones((2, 4))}, "box: expected None with many prompts"),
        ({"boxes": np.ones((2, 5))}, r"boxes: expected the shape \(any, 4\)"),
        ({"boxes": np.ones((2, 4)), "point_coords": np.ones((3, 1, 2)), "point_labels": np.ones((3, 1))}, "boxes"),
        ({"mask_input": np.ones((1, 9, 9))}, r"mask_input: expected the shape \(any, 1, 64, 64\)"),
    ],
)
def test_bad_prompts(ours, arguments, message):
    with pytest.raises(ValueError, match=message):
        ours.predict(**arguments)


def test_the_package_imports_without_tensorflow():
    code = "import sys, tf_models.sam; assert not {'tensorflow', 'torch', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
