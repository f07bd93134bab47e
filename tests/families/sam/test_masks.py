"""Run lengths, boxes, crops and regions of masks, against segment-anything, torchvision, pycocotools and scipy."""

import json

import numpy as np
import pycocotools.mask
import pytest
import scipy.ndimage
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from segment_anything.utils import amg
from torchvision.ops import batched_nms

from tf_models.sam import rle
from tf_models.sam.crops import crop_boxes, point_grids
from tf_models.sam.regions import connected_regions, mask_boxes, near_crop_edge, nms, remove_small_regions

MASKS = arrays.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def blobs(seed, height, width, level=0.55):
    noise = np.random.default_rng(seed).random((height, width))
    return scipy.ndimage.uniform_filter(noise, 3) > level


@given(MASKS)
def test_run_lengths_are_those_of_segment_anything(mask):
    (theirs,) = amg.mask_to_rle_pytorch(torch.from_numpy(mask)[None])
    ours = rle.encode(mask)
    assert ours == theirs
    np.testing.assert_array_equal(rle.decode(ours), mask)
    assert rle.area(ours) == mask.sum()


@pytest.mark.parametrize("level", [-1, 0.3, 0.5, 0.7, 2])
def test_compressed_text_is_that_of_coco(level):
    mask = blobs(0, 413, 207, level)
    ours = rle.to_coco(rle.encode(mask))
    assert ours == amg.coco_encode_rle(rle.encode(mask))
    np.testing.assert_array_equal(pycocotools.mask.decode(json.loads(json.dumps(ours))), mask)


@given(MASKS)
def test_boxes_of_masks(mask):
    theirs = amg.batched_mask_to_box(torch.from_numpy(mask)[None])
    np.testing.assert_array_equal(mask_boxes(mask[None]), theirs.numpy())


@pytest.mark.parametrize(("per_side", "layers", "factor"), [(32, 0, 1), (7, 2, 2), (5, 3, 1)])
def test_point_grids(per_side, layers, factor):
    theirs = amg.build_all_layer_point_grids(per_side, layers, factor)
    for ours, other in zip(point_grids(per_side, layers, factor), theirs, strict=True):
        np.testing.assert_array_equal(ours, other)


@pytest.mark.parametrize("size", [(480, 641), (1200, 333), (50, 50)], ids=str)
@pytest.mark.parametrize("layers", [0, 1, 3])
def test_crops(size, layers):
    boxes, layer_of = amg.generate_crop_boxes(size, layers, 512 / 1500)
    assert crop_boxes(size, layers, 512 / 1500) == list(zip(boxes, layer_of, strict=True))


def test_boxes_near_an_edge_of_their_crop():
    rng = np.random.default_rng(0)
    boxes, size, crop = rng.integers(0, 60, (500, 4)), (90, 110), [30, 0, 80, 90]
    theirs = amg.is_box_near_crop_edge(torch.from_numpy(boxes), crop, [0, 0, 110, 90])
    ours = near_crop_edge(boxes, crop, size)
    assert ours.any()
    assert not ours.all()
    np.testing.assert_array_equal(ours, theirs.numpy())


@pytest.mark.parametrize("count", [0, 1, 300, 1500])  # torchvision has another way for more than 1000 boxes
@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_non_maximum_suppression_in_every_tie(count, threshold):
    rng = np.random.default_rng(count)
    corners, sides = rng.integers(0, 12, (count, 2)), rng.integers(0, 11, (count, 2))  # some have no area
    boxes = np.concatenate([corners, corners + sides], axis=1)
    scores = rng.integers(0, 5, count).astype(np.float32)
    theirs = batched_nms(torch.from_numpy(boxes).float(), torch.from_numpy(scores), torch.zeros(count), threshold)
    ours = nms(boxes, scores, threshold)
    np.testing.assert_array_equal(scores[ours], scores[theirs])
    if count > 1000:  # then torchvision sorts what it keeps once more, and the order of equals is left open
        ours, theirs = np.sort(ours), theirs.sort().values
    np.testing.assert_array_equal(ours, theirs.numpy())


def test_an_overlap_at_the_threshold_is_compared_in_double_precision():
    # 7 / 10 is in float32 a little less than 0.7 in float64, 3 / 10 a little more than 0.3.
    boxes = np.array([[0, 0, 10, 1], [0, 0, 7, 1], [20, 0, 30, 1], [20, 0, 23, 1]], np.float32)
    for threshold in (0.7, 0.3):
        theirs = batched_nms(torch.from_numpy(boxes), torch.arange(4.0).flip(0), torch.zeros(4), threshold)
        np.testing.assert_array_equal(nms(boxes, np.arange(4.0)[::-1], threshold), theirs.numpy())


@given(arrays.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_connected_regions(mask):
    check_regions(mask)


@pytest.mark.parametrize("level", [0.45, 0.5, 0.55])
def test_connected_regions_of_winding_shapes(level):
    check_regions(blobs(1, 230, 310, level))
    spiral = np.ones((41, 41), bool)
    for k in range(1, 20, 2):
        spiral[k, k : 41 - k] = spiral[40 - k, k : 41 - k] = False
        spiral[k : 41 - k, k] = spiral[k : 41 - k, 40 - k] = False
        spiral[k + 1, k] = True
    check_regions(spiral)


def check_regions(mask):
    ours, sizes = connected_regions(mask)
    theirs, count = scipy.ndimage.label(mask, np.ones((3, 3)))
    assert len(sizes) == count
    np.testing.assert_array_equal(ours, theirs)  # scipy too numbers them by their first pixels
    np.testing.assert_array_equal(sizes, np.bincount(theirs.ravel())[1:])


@pytest.mark.usefixtures("opencv")
@pytest.mark.parametrize("mode", ["holes", "islands"])
@pytest.mark.parametrize("threshold", [1, 12, 60, 10**6])
def test_small_regions(mode, threshold):
    for mask in (*(blobs(seed, 120, 90) for seed in range(4)), np.zeros((5, 6), bool), np.ones((5, 6), bool)):
        if mode == "islands" and not mask.any():
            continue  # segment-anything has no largest island to keep
        theirs, changed = amg.remove_small_regions(mask, threshold, mode)
        ours, ours_changed = remove_small_regions(mask, threshold, mode)
        assert changed == ours_changed
        np.testing.assert_array_equal(ours, theirs)
