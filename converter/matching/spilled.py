"""Arrays in a file: a network's results are larger than the network, and are looked at one by one."""

import tempfile
import weakref
from collections.abc import Iterator, Mapping

import numpy as np

from converter.matching.units import Unit


class Spilled(Mapping[int, np.ndarray]):
    """Arrays by number, each read from a file when it is asked for."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        weakref.finalize(self, self._file.close)  # with the last that looks at it
        self._places: dict[int, tuple[int, np.dtype, tuple[int, ...]]] = {}

    def add(self, number: int, value: np.ndarray) -> None:
        """Keep an array; a second one of the same number takes the place of the first."""
        self._places[number] = self._file.seek(0, 2), value.dtype, value.shape
        self._file.write(np.ascontiguousarray(value).data)

    def __getitem__(self, number: int) -> np.ndarray:
        place, dtype, shape = self._places[number]
        value = np.empty(shape, dtype)
        self._file.seek(place)
        self._file.readinto(value.reshape(-1).view(np.uint8).data)
        return value

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class Results(Mapping[Unit, np.ndarray]):
    """The results of units, out of those of steps."""

    def __init__(self, units: list[Unit], values: Mapping[int, np.ndarray]):
        self._values = values
        self._steps = {unit: unit.result for unit in units if unit.result is not None and unit.result in values}

    def __getitem__(self, unit: Unit) -> np.ndarray:
        return self._values[self._steps[unit]]

    def __iter__(self) -> Iterator[Unit]:
        return iter(self._steps)

    def __len__(self) -> int:
        return len(self._steps)
