"""What the tests of Segment Anything share by name."""

import sys
import types

import numpy as np
import pytest
import scipy.ndimage


@pytest.fixture
def opencv(monkeypatch):
    """The one function of OpenCV that segment-anything calls, made of scipy's."""

    def with_stats(image, connectivity):
        assert connectivity == 8
        regions, count = scipy.ndimage.label(image, np.ones((3, 3)))
        stats = np.zeros((count + 1, 5), int)
        stats[:, -1] = np.bincount(regions.ravel(), minlength=count + 1)
        return count + 1, regions, stats, None

    monkeypatch.setitem(sys.modules, "cv2", types.SimpleNamespace(connectedComponentsWithStats=with_stats))
