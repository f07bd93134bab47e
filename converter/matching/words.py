"""What names say: the words and numbers in them, and how alike two are that different libraries gave."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

# Words of the same meaning. Only what is written in many libraries stands here; the rest is learnt from what is known.
_SAME = {
    **dict.fromkeys("q wq queries to_q".split(), "query"),
    **dict.fromkeys("k wk keys to_k".split(), "key"),
    **dict.fromkeys("v wv values to_v".split(), "value"),
    **dict.fromkeys("ln layernorm layer_norm normalization".split(), "norm"),
    **dict.fromkeys("bn batchnorm".split(), "bn"),
    **dict.fromkeys("dense linear fc".split(), "dense"),
    **dict.fromkeys("shortcut downsample".split(), "shortcut"),
    **dict.fromkeys("emb embed embedding embeddings".split(), "embedding"),
    **dict.fromkeys("dw depthwise dwconv".split(), "depthwise"),
    **dict.fromkeys("attn attention".split(), "attention"),
}
_ROLES = ("query", "key", "value")
_WORD = re.compile(r"[a-z]+|\d+")


def words(name: str) -> list[str]:
    """Its words and numbers, in order: `layers.0.selfAttn.q_proj` is layers, 0, self, attention, query, proj."""
    spaced = re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
    return [_SAME.get(word, word) for word in _WORD.findall(spaced)]


def role(name: str) -> str | None:
    """ "query", "key" or "value" where the name says so."""
    found = [word for word in words(name) if word in _ROLES]
    return found[-1] if found else None


class Likeness:
    """How alike the names of two units are; it learns from pairs that are known which words mean the same."""

    def __init__(self, known: Iterable[tuple[str, str]] = ()):
        self._both: Counter = Counter()
        self._theirs: Counter = Counter()
        self._ours: Counter = Counter()
        for theirs, ours in known:
            one, other = set(words(theirs)), set(words(ours))
            self._theirs.update(one)
            self._ours.update(other)
            self._both.update((a, b) for a in one for b in other)

    def __call__(self, theirs: str, ours: str) -> float:
        """From 0, for names that share nothing."""
        one, other = words(theirs), words(ours)
        plain = [[word for word in side if not word.isdigit()] for side in (one, other)]
        numbers = [[word for word in side if word.isdigit()] for side in (one, other)]
        shared = len(set(plain[0]) & set(plain[1]))
        score = 2 * shared / (len(set(plain[0])) + len(set(plain[1])) or 1)
        same = sum(a == b for a, b in zip(reversed(numbers[0]), reversed(numbers[1]), strict=False))
        score += 0.5 * same / (max(map(len, numbers)) or 1)
        learnt = [max((self._met(a, b) for b in set(other)), default=0.0) for a in set(one)]
        return score + sum(learnt) / (len(learnt) or 1)

    def _met(self, theirs: str, ours: str) -> float:
        both = self._both[theirs, ours]
        return both / (self._theirs[theirs] + self._ours[ours] - both) if both else 0.0


def paired_by_names(theirs: Sequence[str], ours: Sequence[str], like: Likeness) -> Mapping[int, int]:
    """Place among `theirs` -> place among `ours`, of names that are the likest to each other in both directions."""
    scores = [[like(one, other) for other in ours] for one in theirs]
    found = {}
    for place, row in enumerate(scores):
        best = max(range(len(ours)), key=row.__getitem__)
        column = [other[best] for other in scores]
        if sum(score >= row[best] - 1e-9 for score in row) == 1 and max(column) <= row[best] + 1e-9:
            found[place] = best
    return found


def ranked(names: Sequence[str]) -> list[str]:
    """The names with each number as its rank among those that stand at the same place: one library counts from 1."""
    seen: dict[str, set[int]] = {}
    pieces = [re.split(r"(\d+)", name) for name in names]
    for parts in pieces:
        for place in range(1, len(parts), 2):
            seen.setdefault("#".join(parts[:place:2]), set()).add(int(parts[place]))
    rank = {before: {number: at for at, number in enumerate(sorted(some))} for before, some in seen.items()}
    return [
        "".join(
            part if place % 2 == 0 else str(rank["#".join(parts[:place:2])][int(part)])
            for place, part in enumerate(parts)
        )
        for parts in pieces
    ]
