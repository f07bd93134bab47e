"""The match itself: both networks are looked at, their units paired, filled and judged, and rows made of what is known."""

import numpy as np
from converter.matching.aligning import align
from converter.matching.deciding import Deciding
from converter.matching.keras_side import KerasSide, is_float
from converter.matching.units import connect, grouped
from converter.torch_side.answers import Held, Outputs, Step, Value
from converter.torch_side.process import TorchProcess
from converter.torch_side.questions import Dataflow, Fetch, Reference
from converter.torch_side.seeding import seeded
