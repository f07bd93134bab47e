"""A run over very many pictures as a pipeline of Apache Beam.

    shards.jsonl -> a shard a line -> its pictures, in batches of one size -> RunInference -> an outcome each, written

Only lines pass between stages; pixels and outcomes stay in the worker that reads them.
"""

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import apache_beam as beam
import numpy as np
from apache_beam.ml.inference.base import KeyedModelHandler, PredictionResult, RunInference
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.options.pipeline_options_validator import PipelineOptionsValidator
from apache_beam.runners.portability.portable_runner import PortableRunner
from apache_beam.runners.runner import create_runner

from tf_models.pictures import storage
from tf_models.pictures.handler import Picture, PictureHandler, Task
from tf_models.pictures.listing import Entry, name_of
from tf_models.pictures.reading import PictureError, read_picture
from tf_models.pictures.results import Results, Shard
from tf_models.runtime.weights_format import printable

_LOCAL = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
Place = tuple[Shard, int, bool]  # of a picture: its shard, where it stands in it, and whether it has no outcome yet


def run(
    task: Task, weights: str, root: str | None, results: Results, batch_size: int, options: Sequence[str] = ()
) -> None:
    """Finish every shard of `results`, and return when that is done.

    Args:
        task: what is done to each picture.
        weights: the file's name.
        root: the folder that names of pictures are relative to; None where they are whole.
        batch_size: the most pictures at once in the network.
        options: of the pipeline, as on a command line; without `--runner` it runs in this process.
    """
    pipeline_options = options_of(options)
    handler = KeyedModelHandler(PictureHandler(task, weights, batch_size)).with_no_batching()
    with beam.Pipeline(options=pipeline_options) as pipeline:
        (
            pipeline
            | "shards" >> beam.io.ReadFromText(results.shards_file)
            | "spread" >> beam.Reshuffle()
            | "read" >> beam.ParDo(_Read(results, root, batch_size))
            | "network" >> RunInference(handler)
            | "write" >> beam.ParDo(_Write(results))
        )


def options_of(words: Sequence[str]) -> PipelineOptions:
    """The options of a pipeline, as Beam reads them; a job server may know more than Beam's package does.

    Raises:
        PictureError: one is unknown, or has no such value, or the runner is unknown or lacks another option.
    """
    name = _parsed(words)[0].runner
    if name in (None, "DirectRunner"):
        # What this name stands for may fetch another runner and start it as a program; this one is in the package.
        name = _LOCAL
    try:
        runner = create_runner(name)
    except Exception as error:  # of a module that is imported
        _refuse(f"--runner {name}: {error}")
    unknown = _parsed(words)[1]  # once more: that module may know options of its own
    if unknown and not isinstance(runner, PortableRunner):
        _refuse(f"unknown option {unknown[0]}")
    options = PipelineOptions(list(words))
    options.view_as(StandardOptions).runner = name
    for problem in PipelineOptionsValidator(options, runner).validate():
        _refuse(problem)
    return options


def _parsed(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """(the values of all options that are known, the words that are no such option's)."""
    parsers: list[argparse.ArgumentParser] = []
    PipelineOptions([]).get_all_options(add_extra_args_fn=parsers.append)  # the way in that Beam leaves to its parser
    (parser,) = parsers
    parser.error = _refuse  # type: ignore[method-assign]  # it would print, and end the program
    return parser.parse_known_args(list(words))


def _refuse(message: str) -> NoReturn:
    raise PictureError(f"Apache Beam refuses its options: {printable(' '.join(message.split()), 400)}")


class _Read(beam.DoFn):
    """A shard's line -> batches of pictures that have no outcome yet; that of a broken one is written here."""

    def __init__(self, results: Results, root: str | None, batch_size: int) -> None:
        self._results, self._root, self._batch_size = results, root, batch_size

    def process(self, line: str) -> Iterator[list[tuple[Place, Picture]]]:
        shard = Shard.of_line(line)
        known = self._results.outcomes(shard)
        if known is None:
            return
        # Pictures wait for others of their size. Those with an outcome wait too, without pixels: so batches are as in a
        # run that was never stopped, and results do not differ from its by a rounding.
        waiting: dict[tuple[int, int], list[tuple[int, np.ndarray | None]]] = {}
        for index, entry in enumerate(shard.pictures):
            if index in known:
                if "width" not in known[index]:  # it could not be read
                    continue
                pixels, size = None, (known[index]["height"], known[index]["width"])
            else:
                try:
                    pixels = self._read(entry)
                except PictureError as error:
                    self._results.record(shard, index, {"reason": str(error)})
                    continue
                size = pixels.shape[:2]
            waiting.setdefault(size, []).append((index, pixels))
            if len(waiting[size]) == self._batch_size:
                yield from self._batch(shard, waiting.pop(size))
            elif sum(map(len, waiting.values())) == 2 * self._batch_size:  # of many sizes: memory has an end
                yield from self._batch(shard, waiting.pop(next(iter(waiting))))
        for pictures in waiting.values():
            yield from self._batch(shard, pictures)

    def _batch(
        self, shard: Shard, pictures: list[tuple[int, np.ndarray | None]]
    ) -> Iterator[list[tuple[Place, Picture]]]:
        """One batch, or none where each has an outcome. Where only some have, a worker died while it wrote them."""
        if all(pixels is None for _, pixels in pictures):
            return
        batch = []
        for index, pixels in pictures:
            entry = shard.pictures[index]
            with contextlib.suppress(PictureError):  # gone since; the others can do without it
                picture = Picture(
                    self._read(entry) if pixels is None else pixels, {} if isinstance(entry, str) else entry
                )
                batch.append(((shard, index, pixels is not None), picture))
        yield batch

    def _read(self, entry: Entry) -> np.ndarray:
        name = name_of(entry)
        path = name if self._root is None else storage.joined(self._root, *name.split("/"))
        return read_picture(path, called=printable(name))


class _Write(beam.DoFn):
    """(place, prediction) -> nothing; the outcome is written."""

    def __init__(self, results: Results) -> None:
        self._results = results

    def process(self, keyed: tuple[Place, PredictionResult]) -> Iterator[Any]:
        (shard, index, new), prediction = keyed
        if new:
            self._results.record(shard, index, prediction.inference)
        return iter(())
