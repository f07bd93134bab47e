"""torch and torchvision are imported before TensorFlow: the other order aborts the process."""

import pytest
import torch  # noqa: F401
import torchvision  # noqa: F401
from hypothesis import settings

import converter.api
from tests.support.one_process import OneProcess

# The same examples every time: a run that fails can be repeated, and one that passed does not fail elsewhere.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

_CHILD = converter.api.TorchProcess
_PLACES = ("converter.api.TorchProcess", "converter.matching.engine.TorchProcess")


@pytest.fixture(scope="session", autouse=True)
def _one_process():
    """Proofs of this process compute torch's side in it too; see `tests/support/one_process.py`."""
    with pytest.MonkeyPatch.context() as patch:
        for place in _PLACES:
            patch.setattr(place, OneProcess)
        yield


@pytest.fixture(autouse=True)
def _child(request, monkeypatch):
    """But those of a test that is marked `child` start the child that users' proofs start."""
    if request.node.get_closest_marker("child"):
        for place in _PLACES:
            monkeypatch.setattr(place, _CHILD)
