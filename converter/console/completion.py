"""What the shell offers where a name is to be typed, at once: no framework is imported, no values are read."""

import re
from collections.abc import Callable, Iterator

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]

# A name that a stranger's file may put on a command line: no blank, nothing that a shell reads, no option.
_PLAIN = re.compile(r"\w[\w.-]*", re.ASCII)


def _offered(find: Callable[[click.Context], Iterator[str]]) -> Complete:
    """A completion of what `find` gives for the words typed so far; nothing where it fails (a damaged file)."""

    def complete(context: click.Context, _parameter: click.Parameter, typed: str) -> list[CompletionItem]:
        try:
            return [CompletionItem(value) for value in find(context) if value.startswith(typed)]
        except Exception:  # a shell has no place for an error
            return []

    return complete


@_offered
def models(_context: click.Context) -> Iterator[str]:
    """Names that --model takes."""
    from converter.pairs.registry import names

    yield "auto"
    yield from names()


@_offered
def options(context: click.Context) -> Iterator[str]:
    """KEY=VALUE of the chosen model, or of all; with the values where there are only some."""
    from converter.pairs.registry import get, pairs

    model = context.params.get("model")
    chosen = [*pairs()] if model in (None, "auto") else [get(str(model))]
    known = {name: option for pair in chosen for name, option in pair.options.items()}
    for name, option in sorted(known.items(), key=lambda item: item[0]):
        kind = option.kind or type(option.default)
        values = option.choices or ((True, False) if kind is bool else ())
        yield from [f"{name}={str(value).lower() if kind is bool else value}" for value in values] or [f"{name}="]


@_offered
def keys(context: click.Context) -> Iterator[str]:
    """The state dicts of a checkpoint of this machine, of which those are offered that a shell takes as they are."""
    from converter.checkpoints.checkpoint import Checkpoint
    from converter.checkpoints.hub import is_address

    if is_address(context.args[0]):  # whoever presses a key does not ask for a download
        return
    with Checkpoint(context.args[0]) as checkpoint:
        yield from filter(_PLAIN.fullmatch, checkpoint.states)


@_offered
def parts(context: click.Context) -> Iterator[str]:
    """The parts that a converted file is exported in, in the format if that is typed before."""
    from tf_models.runtime.exporting import axes, by_name_only

    model = _model(context)
    lacking = by_name_only(model) if context.params.get("format") == "tflite" else ()
    yield from (part for part in axes(model) or (model,) if part not in lacking)


@_offered
def sizes(context: click.Context) -> Iterator[str]:
    """AXIS= of each axis of those parts."""
    from tf_models.runtime.exporting import axes

    yield from dict.fromkeys(f"{axis}=" for some in (axes(_model(context)) or {}).values() for axis in some)


def _model(context: click.Context) -> str:
    from tf_models.runtime.weights_format import provenance

    # With an option that lacks its value, click leaves the arguments where they are.
    return provenance(context.args[0])["model"]


class _Bash(BashComplete):
    """Bash splits words at "=", and replaces what is behind it only."""

    source_template = BashComplete.source_template.replace(
        "    return 0\n", '    [[ "${COMPREPLY[*]}" == *= ]] && compopt -o nospace\n\n    return 0\n'
    )

    def get_completion_args(self) -> tuple[list[str], str]:
        args, incomplete = super().get_completion_args()
        words: list[str] = []
        for before, word in zip(["", *args], [*args, incomplete], strict=True):
            if words and word and "=" in (word, before):
                words[-1] += word
            else:
                words.append(word)
        return words[:-1], words[-1]

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        found = super().get_completions(args, incomplete)
        value = incomplete.partition("=")[2] if incomplete.startswith("-") else incomplete
        typed = value[: value.rfind("=") + 1]
        for item in found:
            item.value = item.value.removeprefix(typed)
        return found


add_completion_class(_Bash)
