"""torch and torchvision are imported before TensorFlow: the other order aborts the process."""

import torch  # noqa: F401
import torchvision  # noqa: F401
