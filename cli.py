"""The commands `convert` and `weightbridge`: they parse, call the converter, and print. No logic lives here."""

import atexit
import contextlib
import functools
import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import click

USAGE, FAILED, INTERRUPTED, TERMINATED = 2, 1, 130, 143


def _print(*lines: str) -> None:
    """Print a result to standard output, each line escaped where it would do more than print.

    Raises:
        ClickException: it cannot be printed, though not because the reader has seen enough.
    """
    from converter.errors import one_line

    try:
        click.echo("\n".join(map(one_line, lines)))
    except BrokenPipeError:
        _discard(sys.stdout)
    except OSError as error:
        _discard(sys.stdout)
        written = "; the output is written" if _replaced() else ""
        raise click.ClickException(f"the report cannot be printed: {error.strerror}{written}") from None


def _print_json(data: Any) -> None:
    _print(*json.dumps(data, indent=2).split("\n"))


def _print_report(report: Any, as_json: bool, *more: str) -> None:
    if as_json:
        _print_json(report.to_dict())
    else:
        _print(*(f"{heading:<9} {text}" for heading, text in report.lines()), *more)


def _tell(text: str) -> None:
    """Print to standard error, if that is possible."""
    try:
        click.echo(text, err=True)
    except OSError:
        _discard(sys.stderr)


def _discard(stream: Any) -> None:
    """Have what a stream could not print, and still holds, go nowhere; Python would fail over it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _Bar:
    """A progress bar on a terminal's standard error."""

    def __init__(self, bar: Any):
        self._bar, self._task = bar, None

    def start(self, stage: str, total: int) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(stage, total=total or None)

    def advance(self, count: int) -> None:
        self._bar.advance(self._task, count)

    def say(self, text: str) -> None:
        self._bar.console.print(text, highlight=False)


class _Plain:
    """What is worth knowing beforehand, on a standard error that is no terminal."""

    def start(self, stage: str, total: int) -> None:
        pass

    def advance(self, count: int) -> None:
        pass

    def say(self, text: str) -> None:
        _tell(text)


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[Any]:
    """A bar where a person is looking, plain lines in a pipe, None for silence."""
    if quiet or not sys.stderr.isatty():
        yield None if quiet else _Plain()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<18}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield _Bar(bar)


@contextlib.contextmanager
def _hushed(debug: bool) -> Iterator[None]:
    """Keep what native libraries print at import away from standard error, so that errors stay one line."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if debug:
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    python_stderr = sys.stderr
    with open(os.devnull, "w") as nowhere, open(kept, "w", closefd=True, errors="backslashreplace") as screen:
        os.dup2(nowhere.fileno(), 2)
        sys.stderr = screen
        try:
            yield
        finally:
            screen.flush()
            sys.stderr = python_stderr
            os.dup2(kept, 2)


class _Stopped(BaseException):
    """The command was told to end. Like KeyboardInterrupt, what handles errors must not take it for one."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


def _heed_signals() -> None:
    """Have Ctrl-C and SIGTERM end the command as an error does, so that what it began is cleaned up."""

    def stop(number: int, _frame: Any) -> None:
        _ignore_signals()  # a second one would disturb the cleaning up
        if _replaced():
            return  # a command that says it was interrupted has changed nothing
        if number == signal.SIGINT:
            raise _Stopped("interrupted", INTERRUPTED)
        raise _Stopped("terminated", TERMINATED)

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, stop)
    atexit.register(_ignore_signals)  # Python takes our handler away before it ends


def _ignore_signals() -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)


def _replaced() -> bool:
    """Whether an output has taken its place."""
    atomic = sys.modules.get("converter.files.atomic")
    return atomic is not None and atomic.replaced.is_set()


def _open_streams() -> None:
    """Open what the caller closed; a file would get its number, and in it what libraries print."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


class _Stoppable(click.Command):
    """A command that heeds signals from the first, also while its arguments are read, which may import modules."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            _open_streams()
            _heed_signals()
            status = super().main(*args, **{**kwargs, "standalone_mode": False})
            sys.exit(status if isinstance(status, int) else 0)
        except click.exceptions.Abort:
            sys.exit(INTERRUPTED)
        except click.ClickException as error:
            _fail(error.format_message(), error.exit_code)
        except OSError as error:
            _discard(sys.stdout)
            _fail(f"what was asked for cannot be printed: {error.strerror}")
        except _Stopped as stopped:
            _tell(f"error: {stopped}")
            sys.exit(stopped.code)


class _StoppableGroup(_Stoppable, click.Group):
    pass


def _fail(message: str, code: int = FAILED) -> NoReturn:
    """End the command with one line of at most 500 characters that only prints."""
    from converter.errors import one_line, shorten

    _tell("error: " + shorten(one_line(" ".join(message.split())), 490))
    sys.exit(code)


def _answering(command: Callable[..., None]) -> Callable[..., None]:
    """Turn what a command raises into one line and an exit code."""

    @click.option("--debug", is_flag=True, help="Show the traceback of an error, and what libraries print.")
    @functools.wraps(command)
    def run(debug: bool, **arguments: Any) -> None:
        try:
            with _hushed(debug):
                try:
                    command(**arguments)
                    return
                except (_Stopped, Exception):
                    if debug:
                        traceback.print_exc()
                    raise
        except click.exceptions.Exit:
            raise
        except click.ClickException as error:
            message, code = error.format_message(), error.exit_code
        except Exception as error:
            message, code = _explained(error)
        _fail(message, code)

    return run


def _explained(error: Exception) -> tuple[str, int]:
    code = getattr(error, "exit_code", None)  # of errors that are meant for users
    if code is not None:
        return str(error), code
    if isinstance(error, MemoryError):
        return "out of memory", FAILED
    from converter.blame import what, where

    place = where(error)
    return f"unexpected {what(error)}{f' at {place}' if place else ''} (--debug shows more)", FAILED


def _options(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    options = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{value!r} is not KEY=VALUE")
        if name.strip() in options:
            raise click.BadParameter(f"{name.strip()} is given twice")
        options[name.strip()] = text.strip()
    return options


def _chosen(model: str, place: str | None) -> str:
    """The model's name, after the user's own pair at `place` was registered; that one goes before "auto"."""
    if place is None:
        return model
    import converter
    from converter.blame import where_and_what

    module, colon, attribute = place.partition(":")
    if not colon:
        raise click.BadParameter(f"--pair {place}: name it as MODULE:ATTRIBUTE")
    sys.path.insert(0, os.getcwd())
    try:
        pair = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the module is the user's own program
        raise click.BadParameter(f"--pair {place} cannot be imported: {where_and_what(error)}") from error
    if not isinstance(pair, converter.Pair):
        raise click.BadParameter(f"--pair {place} is a {type(pair).__name__}, not a converter.Pair")
    name = converter.register(pair).name
    return name if model == "auto" else model


def _version(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"weightbridge {version('weightbridge')}")
        context.exit()


_SHOW_VERSION = click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show the version and exit."
)
_MODEL = click.option("--model", "-m", default="auto", show_default=True, help="Model name; auto recognises it.")
_OPTION = click.option(
    "--option", "options", multiple=True, callback=_options, metavar="KEY=VALUE",
    help="What the checkpoint cannot reveal; `weightbridge models` lists the keys.",
)  # fmt: skip
_PAIR = click.option("--pair", metavar="MODULE:PAIR", help="Your own pair, from an importable module.")
_KEY = click.option("--key", help="Which state dict of the file, where several fit, as model_ema.")
_SCOPE = click.option("--scope", help="Where in a larger network the model is, as backbone.res5.0.")
_SPELLING = click.option("--spelling", help="Whose names and layouts, where several fit the checkpoint, as paddle.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_QUIET = click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")


@click.command(cls=_Stoppable)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@_MODEL
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Default: weights/MODEL.weights.h5.")
@click.option(
    "--verify", type=click.Choice(["train", "full-size", "full", "lossless", "none"]), default="full", show_default=True
)
@click.option("--dtype", type=click.Choice(["float32", "float16"]), default="float32", show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@click.option("--dry-run", is_flag=True, help="Print the plan; write nothing.")
@click.option("--allow-nonfinite", is_flag=True, help="Convert weights that hold NaN or Inf as they are.")
@_OPTION
@_PAIR
@_KEY
@_SCOPE
@_SPELLING
@_JSON
@_QUIET
@_SHOW_VERSION
@_answering
def convert(
    checkpoint: Path,
    model: str,
    output: Path | None,
    verify: str,
    dtype: str,
    overwrite: bool,
    dry_run: bool,
    allow_nonfinite: bool,
    options: dict[str, str],
    pair: str | None,
    key: str | None,
    scope: str | None,
    spelling: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Convert a torch CHECKPOINT to Keras weights, and prove that they are right.

    CHECKPOINT is a .pth, .pt, .bin or .safetensors file, a shard index (*.index.json), or the folder that holds one.
    """
    import converter

    model = _chosen(model, pair)
    if dry_run:
        plan = converter.plan(model, checkpoint, options, key=key, scope=scope, spelling=spelling)
        if not quiet:
            if as_json:
                _print_json(plan.to_dict())
            else:
                _print(*str(plan).split("\n"))
        return
    with _progress(quiet) as progress:
        report = converter.convert(
            model,
            checkpoint,
            output,
            verify=verify,
            overwrite=overwrite,
            options=options,
            dtype=dtype,
            key=key,
            scope=scope,
            spelling=spelling,
            allow_nonfinite=allow_nonfinite,
            progress=progress,
        )
    if not quiet:
        place = json.dumps(str(report.output), ensure_ascii=False)
        _print_report(report, as_json, f"{'load it':<9} tf_models.load({place})")


@click.group(cls=_StoppableGroup, invoke_without_command=True)
@_SHOW_VERSION
@click.pass_context
def main(context: click.Context) -> None:
    """Carry PyTorch weights over to TensorFlow and prove that they arrived."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


main.add_command(convert)


@main.command()
@_PAIR
@_JSON
@_answering
def models(pair: str | None, as_json: bool) -> None:
    """List the models that can be converted, with their tensors and options."""
    _chosen("auto", pair)
    from converter.tables.registry import pairs

    rows: list[dict[str, Any]] = [
        {
            "name": one.name,
            "tensors": one.tensor_count(),
            "summary": one.summary,
            "options": {name: {"default": option.default, "help": option.help} for name, option in one.options.items()},
        }
        for one in pairs()
    ]
    if as_json:
        _print_json(rows)
        return
    lines = []
    width = max(len(str(row["name"])) for row in rows)
    for row in rows:
        count = "any" if row["tensors"] is None else row["tensors"]
        lines.append(f"{row['name']:<{width}}  {count:>4} tensors  {row['summary']}")
        for name, option in row["options"].items():
            lines.append(f"{'':<{width}}    --option {name}={_spelled(option['default'])}  {option['help']}")
    _print(*lines)


def _spelled(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value).lower()


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@_JSON
@_answering
def inspect(file: Path, as_json: bool) -> None:
    """List what a checkpoint or a converted FILE holds: names, shapes, dtypes, bytes, and provenance."""
    import converter
    from converter.errors import printable
    from converter.report import proof_lines, size

    held = converter.inspect(file)
    if as_json:
        entries = [{"name": e.name, "shape": list(e.shape), "dtype": e.dtype, "nbytes": e.nbytes} for e in held]
        _print_json({"container": held.container, "provenance": held.provenance, "entries": entries})
        return
    lines = []
    rows = [(printable(e.name), "x".join(map(str, e.shape)) or "-", printable(e.dtype), f"{e.nbytes:,}") for e in held]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(4)]
    for name, shape, dtype, nbytes in rows:
        lines.append(f"{name:<{widths[0]}}  {shape:<{widths[1]}}  {dtype:<{widths[2]}}  {nbytes:>{widths[3]}}")
    total = sum(e.nbytes for e in held)
    lines += ["", f"{held.container}: {len(held)} tensors, {size(total)}"]
    for name, value in held.provenance.items():
        if name == "proof" and isinstance(value, dict):
            lines += [f"{'proof':<14} {text}" for text in proof_lines(value)]
        else:
            lines.append(f"{name:<14} {printable(json.dumps(value) if isinstance(value, dict) else str(value), 400)}")
    lines += [f"note: {note}" for note in held.notes]
    _print(*lines)


@main.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("weights", type=click.Path(path_type=Path))
@_MODEL
@click.option(
    "--level", type=click.Choice(["train", "full-size", "full", "lossless"]), default="full", show_default=True
)
@_OPTION
@_PAIR
@_KEY
@_SCOPE
@_SPELLING
@_JSON
@_QUIET
@_answering
def verify(
    checkpoint: Path,
    weights: Path,
    model: str,
    level: str,
    options: dict[str, str],
    pair: str | None,
    key: str | None,
    scope: str | None,
    spelling: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Prove existing WEIGHTS against the torch CHECKPOINT they came from."""
    import converter

    model = _chosen(model, pair)
    with _progress(quiet) as progress:
        report = converter.verify(
            model, checkpoint, weights, options, level=level, key=key, scope=scope, spelling=spelling, progress=progress
        )
    if not quiet:
        _print_report(report, as_json)
    if not report:
        raise click.ClickException(f"the proof failed: {report.failure()}")


class _Numbers(click.ParamType):
    """So many numbers with commas between them."""

    def __init__(self, *names: str):
        self.name = ",".join(names)
        self._count = len(names)

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> tuple:
        try:
            numbers = tuple(float(part) for part in value.split(","))
        except ValueError:
            numbers = ()
        if len(numbers) != self._count:
            self.fail(f"{value!r} is not {self.name}", parameter, context)
        return numbers


_POINT, _BOX = _Numbers("X", "Y"), _Numbers("X0", "Y0", "X1", "Y1")


@main.command()
@click.argument("weights", type=click.Path(path_type=Path))
@click.argument("picture", type=click.Path(path_type=Path))
@click.option("--point", "points", type=_POINT, metavar="X,Y", multiple=True, help="A pixel on the object.")
@click.option("--background", type=_POINT, metavar="X,Y", multiple=True, help="A pixel that is not of the object.")
@click.option("--box", "boxes", type=_BOX, metavar="X0,Y0,X1,Y1", multiple=True, help="A box around an object.")
@click.option("--everything", is_flag=True, help="Find all objects, without prompts.")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="Draw the masks over the picture, into this file."
)
@click.option("--masks", type=click.Path(path_type=Path), metavar="FOLDER", help="Write each mask there: 1.png, ...")
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@_JSON
@_QUIET
@_answering
def segment(
    weights: Path,
    picture: Path,
    points: tuple,
    background: tuple,
    boxes: tuple,
    everything: bool,
    output: Path | None,
    masks: Path | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Segment a PICTURE with the converted WEIGHTS of a whole SAM.

    All points, with the box if there is one, describe one object; several boxes are several objects. --json prints the
    masks as COCO's RLE.
    """
    from converter.files.atomic import refuse, replacing
    from tf_models.segmenting.segment import SUFFIXES, check_drawing, check_folder, segment

    if output is None and masks is None and not as_json:
        raise click.UsageError("nothing is to be written: give --output, --masks or --json")
    if output is not None:
        refuse(output, overwrite, SUFFIXES, [weights, picture])
        check_drawing(output, picture)
    if masks is not None:
        check_folder(masks)
    with _progress(quiet) as progress:
        result = segment(weights, picture, points, background, boxes, everything, progress)
    if output is not None:
        with replacing(output, overwrite, SUFFIXES, [weights, picture]) as temporary:
            result.save_drawing(temporary)
    if masks is not None:
        result.save_masks(masks)
    if as_json:
        _print_json(result.to_dict())
    elif not quiet:
        written = [f"{'written':<9} {path}" for path in (output, masks) if path is not None]
        _print(*str(result).split("\n"), *written)


def _sizes(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, int]:
    try:
        return {name: int(text) for name, text in _options(context, parameter, values).items()}
    except ValueError:
        raise click.BadParameter("a length is a whole number") from None


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--format", type=click.Choice(["saved_model", "tflite"]), required=True)
@click.option(
    "--dtype", type=click.Choice(["float32", "float16", "int8-dynamic"]), default="float32", show_default=True,
    help="float16 stores half precision; int8-dynamic is for tflite.",
)  # fmt: skip
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Default: beside FILE, under its name.")
@click.option("--part", help="Of a whole Segment Anything: image_encoder, prompt_encoder or mask_decoder.")
@click.option(
    "--size", "sizes", multiple=True, callback=_sizes, metavar="AXIS=LENGTH",
    help="Length of an axis that tflite fixes, as prompts=4; docs/export.md lists them.",
)  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@_PAIR
@_JSON
@_QUIET
@_answering
def export(
    file: Path,
    format: str,
    dtype: str,
    output: Path | None,
    part: str | None,
    sizes: dict[str, int],
    overwrite: bool,
    pair: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Export a converted FILE as a SavedModel or for TensorFlow Lite, and compare it with the Keras model."""
    import converter

    _chosen("auto", pair)
    report = converter.export(file, output, format, dtype=dtype, part=part, sizes=sizes, overwrite=overwrite)
    if not quiet:
        _print_report(report, as_json)


@main.command()
@click.argument("weights", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), required=True, help="A .pth, .pt, .bin or .safetensors file."
)
@click.option("--dialect", metavar="NAME", help="Whose names and layouts to write; by default the checkpoint's own.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@_PAIR
@_JSON
@_QUIET
@_answering
def restore(
    weights: Path, output: Path, dialect: str | None, overwrite: bool, pair: str | None, as_json: bool, quiet: bool
) -> None:
    """Write the torch checkpoint that a converted FILE came from, bit for bit."""
    import converter

    _chosen("auto", pair)
    with _progress(quiet) as progress:
        report = converter.restore(weights, output, dialect, overwrite, progress)
    if not quiet:
        _print_report(report, as_json)


@main.command("new-pair")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), metavar="FOLDER", required=True,
    help="Where to write; its name is the pair's.",
)  # fmt: skip
@_KEY
@click.option(
    "--overwrite", is_flag=True, help="Replace a pair that was written there, with all that is in the folder."
)
@_JSON
@_QUIET
@_answering
def new_pair(checkpoint: Path, output: Path, key: str | None, overwrite: bool, as_json: bool, quiet: bool) -> None:
    """Write a pair of your own for a CHECKPOINT, to start from: the table, and both networks' layers."""
    import converter

    report = converter.new_pair(checkpoint, output, key=key, overwrite=overwrite)
    if not quiet:
        _print_report(report, as_json)


if __name__ == "__main__":
    main()
