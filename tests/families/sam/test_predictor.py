"""The predictor against segment-anything's on photographs, with the same weights; float64 is the truth."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import torch
from segment_anything import SamPredictor

from tests.support.rule import assert_allowed, last
from tests.support.sam_sides import large_sides, overlap, photographs, small_sides
from tests.support.small_sam import CONFIG
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


def named(answers):
    """Masks and low-resolution masks of each answer, channels last, and the qualities of all."""
    found = {"iou": np.concatenate([iou for _, iou, _ in answers.values()])}
    for name, (masks, _, low) in answers.items():
        found |= {f"{name}, masks": np.moveaxis(masks, 0, -1), f"{name}, low": np.moveaxis(low, 0, -1)}
    return found


def truth_of(sides, ours, image):
    """segment-anything's predictor in float64, that has the picture with our embedding, which is judged here.

    So what the encoder rounds does not widen what is allowed of the masks.
    """
    predictor = SamPredictor(sides.double)

    def compute():
        predictor.set_image(image)
        return [last(predictor.get_image_embedding())]

    embedding = ours.get_image_embedding()
    assert embedding.dtype == np.float32
    if sides is small_sides():  # ViT-B's encoder takes 16 GB under the rule, and is judged in test_image_encoder
        assert_allowed([last(embedding)], compute)
    else:
        predictor.reset_image()
        predictor.original_size, predictor.is_image_set = image.shape[:2], True
        predictor.input_size = ResizeLongestSide(sides.double.image_encoder.img_size).apply_image(image).shape[:2]
    predictor.features = torch.tensor(embedding, dtype=torch.float64)
    return predictor


def assert_right(sides, ours, image, given, answers):
    """The answers, logits, to prompts by name, are as near to those of float64 as the rule of the proof demands."""
    predictor = truth_of(sides, ours, image)
    assert all(values.dtype == np.float32 for answer in answers.values() for values in answer)
    assert_allowed(
        named(answers),
        lambda: named({name: predictor.predict(**prompt, return_logits=True) for name, prompt in given.items()}),
    )


def compare(sides, ours, images, names):
    both_signs = 0
    for image in images:
        ours.set_image(image)
        assert ours.original_size == image.shape[:2]
        assert ours.input_size == ResizeLongestSide(sides.double.image_encoder.img_size).apply_image(image).shape[:2]
        given, answers, earlier = {}, {}, None
        for name in names:
            arguments = prompts(*image.shape[:2])[name]
            given[name] = {key: earlier if value is None else value for key, value in arguments.items()}
            answers[name] = ours.predict(**given[name], return_logits=True)
            masks, iou, low = ours.predict(**given[name])
            assert masks.dtype == bool
            np.testing.assert_array_equal(masks, answers[name][0] > sides.torch.mask_threshold)
            np.testing.assert_array_equal(iou, answers[name][1])
            both_signs += sum(0.02 < share < 0.98 for share in masks.mean(axis=(1, 2)))
            earlier = low[:1]
        assert_right(sides, ours, image, given, answers)
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
    truth_of(sides, ours, photographs()["wide"])


def test_bgr(ours):
    expected = ours.get_image_embedding()
    ours.set_image(photographs()["wide"][..., ::-1], image_format="BGR")
    np.testing.assert_array_equal(ours.get_image_embedding(), expected)


def test_an_extreme_picture(sides, spare):
    rng = np.random.default_rng(0)
    for shape in [(1, 1, 3), (10, 1250, 3)]:  # the latter is one row of 80 pixels to the network
        image = rng.integers(0, 256, shape, np.uint8)
        spare.set_image(image)
        point = {"point_coords": np.array([[0, 0]]), "point_labels": np.array([1])}
        assert_right(sides, spare, image, {"point": point}, {"point": spare.predict(**point, return_logits=True)})


def test_many_prompts_in_one_call_are_those_of_single_calls(sides, ours):
    rng = np.random.default_rng(1)
    corners = rng.uniform(0, 200, (9, 2, 2))
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    points, labels = rng.uniform(0, 200, (9, 2, 2)), rng.integers(0, 2, (9, 2))
    earlier = rng.standard_normal((9, 1, 40, 40)).astype(np.float32)
    for given in ({"boxes": boxes}, {"point_coords": points, "point_labels": labels}, {"mask_input": earlier}):
        many = ours.predict(**given, return_logits=True)
        assert [len(result) for result in many] == [9, 9, 9]
        answers = {index: [result[index] for result in many] for index in (0, 3, 8)}
        single = {
            index: {key.replace("boxes", "box"): value[index] for key, value in given.items()} for index in answers
        }
        assert_right(sides, ours, photographs()["wide"], single, answers)
    masks, iou, low = ours.predict(boxes=boxes[:1], multimask_output=False)
    assert (masks.shape[:2], iou.shape, low.shape[:2]) == ((1, 1), (1, 1), (1, 1))
    masks, iou, low = ours.predict(boxes=np.zeros((0, 4)))
    assert (masks.shape, iou.shape, len(low)) == ((0, 3, 233, 512), (0, 3), 0)


def test_many_prompts_against_the_official_batches(sides, ours):
    official = truth_of(sides, ours, photographs()["wide"])
    boxes = torch.tensor([[10.0, 20, 200, 180], [300, 5, 500, 230], [0, 0, 40, 40]])
    points, labels = torch.rand(3, 4, 2) * 200, torch.randint(0, 2, (3, 4))

    def compute():
        scaled = official.transform.apply_boxes_torch(boxes.double(), (233, 512))
        return map(last, official.predict_torch(points.double(), labels, scaled, return_logits=True))

    scaled = ours.transform.apply_boxes(boxes.numpy(), (233, 512))
    got = ours.predict_tf(points.numpy(), labels.numpy(), scaled, return_logits=True)
    assert_allowed(list(map(last, got)), compute)


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
    scaled = ResizeLongestSide(CONFIG["image_size"]).apply_images(tf.constant(image[None], tf.float32))
    predictor = spare
    predictor.set_tf_image(tf.repeat(scaled, 2, axis=0), image.shape[:2])
    masks = predictor.predict_batch()[0]
    np.testing.assert_array_equal(*masks)
    predictor.set_image(image)
    assert overlap(masks[0], predictor.predict()[0]) > 0.98, "rounding to uint8 moves few pixels"
    with pytest.raises(ValueError, match=r"expected \(N, h, w, 3\) with a long side of 80"):
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
        ({"mask_input": np.ones((1, 9, 9))}, r"mask_input: expected the shape \(any, 1, 40, 40\)"),
    ],
)
def test_bad_prompts(ours, arguments, message):
    with pytest.raises(ValueError, match=message):
        ours.predict(**arguments)


def test_the_package_imports_without_tensorflow():
    code = "import sys, tf_models.sam; assert not {'tensorflow', 'torch', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
