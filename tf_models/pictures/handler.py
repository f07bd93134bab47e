"""A network over pictures as a model handler of Apache Beam's RunInference."""

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from apache_beam.ml.inference.base import ModelHandler, PredictionResult

from tf_models.pictures import storage


@dataclass(frozen=True, eq=False)
class Picture:
    """What a network is given: pixels (H, W, 3), uint8, RGB, and what is asked about them, if the task takes that."""

    pixels: np.ndarray
    entry: dict[str, Any] = field(default_factory=dict)


Annotations = list[dict[str, Any]]  # of a picture: what COCO's annotations hold beside `id` and `image_id`
Model = Callable[[Sequence[Picture]], list[Annotations]]


class Task(Protocol):
    """What is done to each picture. It is pickled on its way to the workers, and loads its network there.

    Attributes:
        name: what it is called in `run.json`.
        options: beside the weights, what decides the results; fit for JSON.
        categories: COCO's categories of the annotations.
        keys: what may stand in a picture's entry beside its name, as prompts.
    """

    @property
    def name(self) -> str: ...
    @property
    def options(self) -> dict[str, Any]: ...
    @property
    def categories(self) -> list[dict[str, Any]]: ...
    @property
    def keys(self) -> tuple[str, ...]: ...

    def check(self, weights: str) -> None:
        """See, without loading the network, that a weights file of this machine is one for the task.

        It raises ValueError, with a line that says why, where it is none.
        """

    def load(self, weights: str) -> Model:
        """The network of a weights file of this machine, as a function of pictures of one size.

        The function raises ValueError, with a line that says why, where it cannot take a picture.
        """


class PictureHandler(ModelHandler[Picture, PredictionResult, Any]):
    """Runs a task's network in RunInference: pictures -> PredictionResult with an outcome for each.

    An outcome is {"width", "height", "annotations"}, or with "reason" for annotations where the network cannot take the
    picture: one of these stops neither its batch nor the run.

    Args:
        task: what is done.
        weights: the file's name, on any file system that Apache Beam knows.
        batch_size: the most pictures at once.
    """

    def __init__(self, task: Task, weights: str, batch_size: int = 1) -> None:
        super().__init__(min_batch_size=1, max_batch_size=batch_size)
        self._task = task
        self._weights = weights

    def load_model(self) -> "Loaded":
        with storage.at_hand(self._weights) as weights:
            return Loaded(self._task.load(weights))

    def run_inference(
        self, batch: Sequence[Picture], model: "Loaded", inference_args: dict[str, Any] | None = None
    ) -> Iterable[PredictionResult]:
        # Threads of a worker share the network, which keeps the machine busy by itself and the picture it is at.
        with model.lock:
            outcomes = _outcomes(batch, model.call)
        return [PredictionResult(example, outcome) for example, outcome in zip(batch, outcomes, strict=True)]

    def get_num_bytes(self, batch: Sequence[Picture]) -> int:
        return sum(picture.pixels.nbytes for picture in batch)


class Loaded:
    """A task's network in a worker."""

    def __init__(self, call: Model) -> None:
        self.call = call
        self.lock = threading.Lock()


def _outcomes(batch: Sequence[Picture], call: Model) -> list[dict[str, Any]]:
    by_size: dict[tuple[int, ...], list[int]] = {}
    for index, picture in enumerate(batch):
        by_size.setdefault(picture.pixels.shape, []).append(index)
    outcomes: list[dict[str, Any]] = [{} for _ in batch]
    for places in by_size.values():
        for index, outcome in zip(places, _of_one_size([batch[index] for index in places], call), strict=True):
            outcomes[index] = outcome
    return outcomes


def _of_one_size(batch: Sequence[Picture], call: Model) -> list[dict[str, Any]]:
    height, width = batch[0].pixels.shape[:2]
    size = {"width": width, "height": height}
    try:
        return [{**size, "annotations": annotations} for annotations in call(batch)]
    except ValueError as error:
        if len(batch) == 1:
            return [{**size, "reason": str(error)}]
        return [outcome for picture in batch for outcome in _of_one_size([picture], call)]
