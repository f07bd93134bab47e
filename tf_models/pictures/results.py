"""The folder that a run over many pictures fills, and from which it goes on after it was stopped.

    run.json          what makes results what they are: task, weights, options, where the pictures are
    shards.jsonl      a line a shard: its pictures, in order; lines are added and never changed
    partial/00007/    the outcome of each picture of a shard that is in the making: 000012.json
    part-00007.json   a finished shard, as a COCO dataset
    done/00007.json   that it is finished: counts, and which pictures are broken and why
    errors.json       all broken pictures, written at the end

Every file appears whole. An outcome is written when it is known; who writes the last of a shard puts them together. So
it does not matter which worker has which picture, nor when one dies: what is not written is done again, nothing else.
"""

import contextlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tf_models.pictures import storage
from tf_models.pictures.listing import Entry, name_of
from tf_models.pictures.reading import PictureError
from tf_models.runtime.weights_format import printable

# Annotations of a picture are numbered from so many times its own number.
_ROOM = 10**6
_WHOLE = ("width", "height", "annotations")
_PARTIAL = re.compile(r"[0-9]+/[0-9]+\.json")

# Of a picture: {"width", "height", "annotations"}, or with "reason" for annotations where it is broken; without a size
# where it could not be read.
Outcome = dict[str, Any]


@dataclass(frozen=True)
class Shard:
    """Pictures whose results stand in one file; `first` is the place of its first among all pictures of the run."""

    number: int
    first: int
    pictures: Sequence[Entry]

    @classmethod
    def of_line(cls, line: str) -> "Shard":
        return cls(**json.loads(line))

    def line(self) -> str:
        """A line of ASCII: names may hold any bytes."""
        return json.dumps(vars(self), separators=(",", ":"))


@dataclass(frozen=True)
class Summary:
    """A finished run: so many pictures, so many annotations, and which pictures are broken: {"file_name", "reason"}."""

    pictures: int
    annotations: int
    errors: list[dict[str, str]]

    def to_dict(self) -> dict[str, Any]:
        return vars(self)

    def __str__(self) -> str:
        lines = [f"{'pictures':<9} {self.pictures:,}, annotations {self.annotations:,}"]
        if self.errors:
            lines.append(f"{'broken':<9} {len(self.errors):,}, listed in errors.json")
        return "\n".join(lines)


class Results:
    """The results in a folder.

    Args:
        folder: its name; any file system that Apache Beam knows.
        categories: COCO's, of the annotations.
    """

    def __init__(self, folder: str, categories: Sequence[dict[str, Any]] = ()) -> None:
        self.folder = folder
        self.categories = list(categories)

    @property
    def shards_file(self) -> str:
        return self._place("shards.jsonl")

    # --- Before a run -----------------------------------------------------------------------------------------------

    def begin(self, about: dict[str, Any]) -> None:
        """Note what makes the results what they are, or see that it is the same as it was.

        Raises:
            PictureError: it differs, or the folder holds something else.
        """
        place = self._place("run.json")
        if not storage.exists(place):
            if storage.names_in(self.folder):
                raise PictureError(
                    f"{printable(self.folder)} holds other files and no run.json of an earlier run; name a new folder"
                )
            storage.write(place, _json(about, indent=2))
            return
        try:
            was = json.loads(storage.read(place))
        except ValueError:
            raise PictureError(f"{printable(place)} is damaged; name a new folder") from None
        differ = [name for name in {**was, **about} if was.get(name) != about.get(name)]
        if differ:
            name = differ[0]
            raise PictureError(
                f"{printable(self.folder)} is of a run with another {', '.join(differ)}: it had {name} "
                f"{printable(json.dumps(was.get(name)))}, now {printable(json.dumps(about.get(name)))}; "
                "give what it had, or name a new folder"
            )

    def plan(self, entries: Iterable[Entry], size: int, retry: bool = False) -> None:
        """Put pictures that no shard holds yet into new shards of at most `size`.

        Args:
            retry: those that are broken go into new shards once more, with other prompts if they have such now.

        Raises:
            PictureError: a picture that is not tried again had other prompts in an earlier run.
        """
        shards = list(self.shards())
        known = {name_of(entry): entry for shard in shards for entry in shard.pictures}
        broken = [error["file_name"] for error in self.errors()]
        new: list[Entry] = []
        for entry in entries:
            name = name_of(entry)
            if name not in known:
                known[name] = entry
                new.append(entry)
            elif known[name] != entry:
                if not (retry and name in broken):
                    again = "--retry tries it again" if name in broken else "name a new folder"
                    raise PictureError(
                        f"{printable(name)} has other prompts than in the run of {printable(self.folder)}; {again}"
                    )
                known[name] = entry
        if retry:
            new += [known[name] for name in broken]
        if new:
            first = sum(len(shard.pictures) for shard in shards)
            for start in range(0, len(new), size):
                shards.append(Shard(len(shards), first + start, new[start : start + size]))
            storage.write(self.shards_file, "".join(f"{shard.line()}\n" for shard in shards).encode())

    def check_outcomes(self) -> None:
        """See that the outcomes of shards in the making can be read.

        Raises:
            PictureError: one is damaged.
        """
        with contextlib.suppress(OSError):  # none is begun
            for name in self._partial_names():
                self._outcome(self._place("partial", *name.split("/")))

    # --- During a run -----------------------------------------------------------------------------------------------

    def outcomes(self, shard: Shard) -> dict[int, Outcome] | None:
        """What is known of the pictures of a shard, by their places in it; None where it is finished."""
        if storage.exists(self._done(shard.number)):
            return None
        known = {index: self._outcome(place) for index, place in self._begun(shard).items()}
        if len(known) == len(shard.pictures):  # the last worker died before it put them together
            self._finish(shard, known)
            return None
        return known

    def record(self, shard: Shard, index: int, outcome: Outcome) -> None:
        """Write the outcome of the picture at a place of a shard; with the last of them, the shard."""
        storage.write(self._partial(shard.number, f"{index:06}.json"), _json(outcome))
        begun = self._begun(shard)
        if len(begun) == len(shard.pictures):
            self._finish(shard, {place: self._outcome(name) for place, name in begun.items()})

    def _begun(self, shard: Shard) -> dict[int, str]:
        """Place of each picture that has an outcome -> the file with it."""
        numbers = _numbers(storage.names_in(self._partial(shard.number)))
        return {
            index: self._partial(shard.number, f"{index:06}.json") for index in numbers if index < len(shard.pictures)
        }

    @staticmethod
    def _outcome(place: str) -> Outcome:
        return _table(place, "its picture is", lambda data: "reason" in data or {*_WHOLE} <= {*data})

    def _finish(self, shard: Shard, outcomes: dict[int, Outcome]) -> None:
        images, annotations, errors = [], [], []
        for index, entry in enumerate(shard.pictures):
            outcome = outcomes[index]
            if "reason" in outcome:
                errors.append({"file_name": name_of(entry), "reason": outcome["reason"]})
                continue
            number = shard.first + index + 1
            images.append(
                {
                    "id": number,
                    "file_name": name_of(entry),
                    "width": outcome["width"],
                    "height": outcome["height"],
                }
            )
            for place, annotation in enumerate(outcome["annotations"], start=1):
                annotations.append({"id": number * _ROOM + place, "image_id": number, **annotation})
        part = {"images": images, "annotations": annotations, "categories": self.categories}
        storage.write(self._place(f"part-{shard.number:05}.json"), _json(part))
        done = {"pictures": len(shard.pictures), "annotations": len(annotations), "errors": errors}
        storage.write(self._done(shard.number), _json(done))
        storage.remove_folder(self._partial(shard.number))

    # --- After a run, and between -----------------------------------------------------------------------------------

    def shards(self) -> Iterator[Shard]:
        if storage.exists(self.shards_file):
            for number, line in enumerate(storage.read(self.shards_file).splitlines(), start=1):
                try:
                    yield Shard.of_line(line.decode())
                except (TypeError, ValueError):
                    told = f"{printable(self.shards_file)}, line {number} is damaged"
                    raise PictureError(f"{told}; name a new folder for the results") from None

    def missing(self) -> set[int]:
        """Numbers of the shards that are not finished."""
        return {shard.number for shard in self.shards()} - self._finished()

    def errors(self) -> list[dict[str, str]]:
        """The broken pictures of finished shards: {"file_name", "reason"}. Of one tried again the last try counts."""
        broken: dict[str, str] = {}
        finished = self._finished()
        for shard in self.shards():
            if shard.number in finished:
                for entry in shard.pictures:
                    broken.pop(name_of(entry), None)
                broken |= {error["file_name"]: error["reason"] for error in self._about(shard.number)["errors"]}
        return [{"file_name": name, "reason": reason} for name, reason in broken.items()]

    def end(self) -> Summary:
        """Write the list of broken pictures, and clean up.

        Raises:
            PictureError: shards are missing.
        """
        if missing := self.missing():
            raise PictureError(f"{len(missing)} shards are not finished; start the run again")
        errors = self.errors()
        storage.write(self._place("errors.json"), _json(errors, indent=2))
        storage.remove_folder(self._place("partial"))
        for folder in (self.folder, self._place("done")):
            storage.remove_half_written(folder)
        pictures = len({name_of(entry) for shard in self.shards() for entry in shard.pictures})
        return Summary(pictures, sum(self._about(number)["annotations"] for number in self._finished()), errors)

    def counting(self) -> Callable[[], tuple[int, int, int]]:
        """A function that counts pictures: in all shards, with an outcome, and broken; cheap when called again."""
        total = sum(len(shard.pictures) for shard in self.shards())
        known: dict[int, dict[str, Any]] = {}
        begun: Counter[int] = Counter()

        def count() -> tuple[int, int, int]:
            known.update({number: self._about(number) for number in self._finished() - set(known)})
            with contextlib.suppress(OSError):  # a shard was finished, or none is begun: then as they were
                now = Counter(int(name.partition("/")[0]) for name in self._partial_names())
                begun.clear()
                begun.update(now)
            finished = sum(about["pictures"] for about in known.values())
            waiting = sum(count for shard, count in begun.items() if shard not in known)
            return total, finished + waiting, sum(len(about["errors"]) for about in known.values())

        return count

    def _partial_names(self) -> Iterator[str]:
        for name in storage.walk(self._place("partial")):
            if _PARTIAL.fullmatch(name):
                yield name

    def _finished(self) -> set[int]:
        return _numbers(storage.names_in(self._place("done")))

    def _about(self, number: int) -> dict[str, Any]:
        return _table(self._done(number), "its pictures are", _is_done)

    def _place(self, *names: str) -> str:
        return storage.joined(self.folder, *names)

    def _partial(self, number: int, *names: str) -> str:
        return self._place("partial", f"{number:05}", *names)

    def _done(self, number: int) -> str:
        return self._place("done", f"{number:05}.json")


def _table(place: str, what: str, whole: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """A table that a run wrote.

    Raises:
        PictureError: it is damaged; what to do.
    """
    try:
        data = json.loads(storage.read(place))
    except ValueError:
        data = None
    if not isinstance(data, dict) or not whole(data):
        raise PictureError(f"{printable(place, 240)} is damaged; remove it and start again, and {what} done again")
    return data


def _is_done(data: dict[str, Any]) -> bool:
    counts, errors = (data.get("pictures"), data.get("annotations")), data.get("errors")
    return (
        all(isinstance(count, int) for count in counts)
        and isinstance(errors, list)
        and all(isinstance(error, dict) and {"file_name", "reason"} <= {*error} for error in errors)
    )


def _numbers(names: Iterable[str]) -> set[int]:
    """The numbers that files of ours are named by; what else stands beside them is not."""
    return {int(name[:-5]) for name in names if re.fullmatch(r"[0-9]+\.json", name)}


def _json(data: Any, indent: int | None = None) -> bytes:
    return (json.dumps(data, indent=indent, separators=None if indent else (",", ":")) + "\n").encode()
