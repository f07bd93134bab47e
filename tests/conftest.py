"""torch and torchvision are imported before TensorFlow: the other order aborts the process."""

import torch  # noqa: F401
import torchvision  # noqa: F401
from hypothesis import settings

# The same examples every time: a run that fails can be repeated, and one that passed does not fail elsewhere.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
