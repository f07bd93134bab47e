"""The commands `convert` and `weightbridge`: they parse, call the converter, and print."""

import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

try:
    from converter.console import completion
    from converter.console.commands import Command, CommandGroup, answering
    from converter.console.progress_bar import progress_for
    from converter.console.streams import print_json, print_lines, print_report
except ImportError as error:  # of a system that it does not run on
    sys.exit(f"error: {error}")


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


def _chosen(model: str, place: str | None, plan: Path | None = None) -> str:
    """The model's name, after the user's own pair at `place` was registered; that one goes before "auto".

    Or the name of the pair of a plan.
    """
    if plan is not None:
        if model != "auto" or place is not None:
            raise click.UsageError("--plan names both networks; leave --model and --pair out")
        import converter

        return converter.register(converter.Match.load(plan).pair).name
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


def _merging(wanted: bool, scale: float | None) -> bool | float:
    """What `merge_lora` is to be."""
    if scale is not None and not wanted:
        raise click.UsageError("--lora-scale is for --merge-lora")
    return wanted if scale is None else scale


def _version(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"weightbridge {version('weightbridge')}")
        context.exit()


_SHOW_VERSION = click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show the version and exit."
)
_MODEL = click.option(
    "--model", "-m", default="auto", show_default=True, help="Model name; auto recognises it.",
    shell_complete=completion.models,
)  # fmt: skip
_OPTION = click.option(
    "--option", "options", multiple=True, callback=_options, metavar="KEY=VALUE", shell_complete=completion.options,
    help="What the checkpoint cannot reveal; `weightbridge models` lists the keys.",
)  # fmt: skip
_PAIR = click.option("--pair", metavar="MODULE:PAIR", help="Your own pair, from an importable module.")
_PLAN = click.option(
    "--plan", type=click.Path(path_type=Path), metavar="FILE",
    help="A plan that `weightbridge match` wrote: both networks, and what fills what.",
)  # fmt: skip
_KEY = click.option(
    "--key", help="Which state dict of the file, where several fit, as model_ema.", shell_complete=completion.keys
)
_SCOPE = click.option("--scope", help="Where in a larger network the model is, as backbone.res5.0; '' is the whole.")
_IGNORE = click.option(
    "--ignore", multiple=True, metavar="NAME", help="Tensors to pass over, as 'loss_fn.*'; may be given several times."
)
_DIALECT = click.option(
    "--dialect", "--spelling", "dialect", metavar="NAME",
    help="Whose names and layouts, where several fit the checkpoint, as paddle; --spelling is its older name.",
)  # fmt: skip
_MERGE_LORA = click.option("--merge-lora", is_flag=True, help="Add what LoRA learnt to the kernels it belongs to.")
_LORA_SCALE = click.option(
    "--lora-scale", type=float, metavar="NUMBER",
    help="With --merge-lora: alpha / r of its training, where the checkpoint does not tell it.",
)  # fmt: skip
_LIKE = click.option(
    "--like", metavar="ORIGINAL", type=click.Path(path_type=Path),
    help="The converted file whose model was trained, where Keras saved the weights.",
)  # fmt: skip
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_HTML = click.option(
    "--html", type=click.Path(path_type=Path), metavar="FILE", help="Write a page that shows the proof: report.html."
)
_QUIET = click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")


@click.command(cls=Command)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@_MODEL
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Default: weights/MODEL.weights.h5.")
@click.option(
    "--verify",
    type=click.Choice(["train", "full-size", "full", "lossless", "none"]),
    default="full",
    show_default=True,
    help="What is proven: every bit (lossless), what both networks compute (full), and how they train.",
)
@click.option("--dtype", type=click.Choice(["float32", "float16"]), default="float32", show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@click.option("--dry-run", is_flag=True, help="Print the plan; write nothing.")
@click.option("--allow-nonfinite", is_flag=True, help="Convert weights that hold NaN or Inf as they are.")
@_OPTION
@_PAIR
@_PLAN
@_KEY
@_SCOPE
@_DIALECT
@_IGNORE
@_MERGE_LORA
@_LORA_SCALE
@_HTML
@_JSON
@_QUIET
@_SHOW_VERSION
@answering
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
    plan: Path | None,
    key: str | None,
    scope: str | None,
    dialect: str | None,
    ignore: tuple[str, ...],
    merge_lora: bool,
    lora_scale: float | None,
    html: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Convert a torch CHECKPOINT to Keras weights, and prove that they are right.

    CHECKPOINT is a .pth, .pt, .bin, .safetensors, .pkl or .pdparams file, a shard index (*.index.json), the folder that
    holds one, or hf://ORGANISATION/NAME on the Hugging Face Hub.
    """
    import converter

    model = _chosen(model, pair, plan)
    merged = _merging(merge_lora, lora_scale)
    if dry_run and html is not None:
        raise click.UsageError("--html shows a proof, and --dry-run has none")
    if dry_run:
        planned = converter.plan(
            model, checkpoint, options, key=key, scope=scope, dialect=dialect, ignore=ignore, merge_lora=merged
        )
        if not quiet:
            if as_json:
                print_json(planned.to_dict())
            else:
                print_lines(*str(planned).split("\n"))
        return
    from converter.pages.proof import shown

    with shown(html, overwrite) as show, progress_for(quiet) as progress:
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
            dialect=dialect,
            ignore=ignore,
            allow_nonfinite=allow_nonfinite,
            merge_lora=merged,
            progress=progress,
        )
        show(report)
    if not quiet:
        print_report(report, as_json, *_page(html), ("load it", report.loading()))


def _page(html: Path | None) -> list[tuple[str, str]]:
    return [] if html is None else [("page", str(html))]


@click.group(cls=CommandGroup, invoke_without_command=True)
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
@answering
def models(pair: str | None, as_json: bool) -> None:
    """List the models that can be converted, with their tensors and options."""
    _chosen("auto", pair)
    from converter.pairs.registry import get, names

    rows: list[dict[str, Any]] = [
        {
            "name": one.name,
            "family": one.family or None,
            "tensors": one.tensor_count(),
            "summary": one.summary,
            "options": {name: {"default": option.default, "help": option.help} for name, option in one.options.items()},
        }
        for one in map(get, names())
    ]
    if as_json:
        print_json(rows)
        return
    lines = []
    width = max(len(str(row["name"])) for row in rows)
    for row in rows:
        count = "any size" if row["tensors"] is None else f"{row['tensors']} tensors"
        lines.append(f"{row['name']:<{width}}  {count:>12}  {row['summary']}")
        for name, option in row["options"].items():
            lines.append(f"{'':<{width}}    --option {name}={_spelled(option['default'])}  {option['help']}")
    print_lines(*lines)


def _spelled(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value).lower()


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@_JSON
@answering
def inspect(file: Path, as_json: bool) -> None:
    """List what a checkpoint or a converted FILE holds: names, shapes, dtypes, bytes, and provenance."""
    import converter
    from converter.errors import printable
    from converter.report import proof_lines, size

    held = converter.inspect(file)
    if as_json:
        entries = [{"name": e.name, "shape": list(e.shape), "dtype": e.dtype, "nbytes": e.nbytes} for e in held]
        print_json(
            {"container": held.container, "provenance": held.provenance, "entries": entries, "notes": [*held.notes]}
        )
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
            if name == "origin":  # places, which say nothing to a person
                value = {key: one for key, one in value.items() if key != "order"}
            lines.append(f"{name:<14} {printable(json.dumps(value) if isinstance(value, dict) else str(value), 400)}")
    lines += [f"note: {note}" for note in held.notes]
    print_lines(*lines)


@main.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("weights", type=click.Path(path_type=Path))
@_MODEL
@click.option(
    "--level",
    "--verify",
    "level",
    type=click.Choice(["train", "full-size", "full", "lossless"]),
    default="full",
    show_default=True,
    help="What is proven, as --verify of convert says it.",
)
@click.option(
    "--torch", "torch_build", metavar="MODULE:BUILDER",
    help="Audit a port of someone's: what builds the torch network, as torchvision.models:resnet50.",
)  # fmt: skip
@click.option("--keras", "keras_build", metavar="MODULE:BUILDER", help="With --torch: what builds the Keras model.")
@click.option(
    "--inputs", metavar="MODULE:FUNCTION",
    help="With --torch: gives inputs: (torch's, Keras's), or torch's alone, which are laid out for Keras.",
)  # fmt: skip
@_OPTION
@_PAIR
@_PLAN
@_KEY
@_SCOPE
@_DIALECT
@_IGNORE
@_MERGE_LORA
@_LORA_SCALE
@_HTML
@click.option("--overwrite", is_flag=True, help="Replace an existing page.")
@_JSON
@_QUIET
@answering
def verify(
    checkpoint: Path,
    weights: Path,
    model: str,
    level: str,
    torch_build: str | None,
    keras_build: str | None,
    inputs: str | None,
    options: dict[str, str],
    pair: str | None,
    plan: Path | None,
    key: str | None,
    scope: str | None,
    dialect: str | None,
    ignore: tuple[str, ...],
    merge_lora: bool,
    lora_scale: float | None,
    html: Path | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Prove existing WEIGHTS against the torch CHECKPOINT they came from.

    With --torch, --keras and --inputs any Keras model is audited that WEIGHTS fill, whoever wrote it: each layer on
    torch's own input, with the cause where it differs. A configuration that no result shows is told, and no failure.
    """
    import converter

    if torch_build or keras_build or inputs:
        others = (options, pair, plan, key, scope, dialect, ignore, merge_lora, lora_scale, html, overwrite)
        if model != "auto" or level != "full" or any(others):
            raise click.UsageError("with --torch, --keras and --inputs only --json and --quiet are for an audit")
        if not (torch_build and keras_build and inputs):
            raise click.UsageError("an audit needs all of --torch, --keras and --inputs")
        with progress_for(quiet) as progress:
            audit = converter.audit(torch_build, keras_build, inputs, checkpoint, weights=weights, progress=progress)
        if not quiet:
            print_report(audit, as_json)
        if not audit:
            raise click.ClickException(f"the audit found {audit.failure()}")
        return
    model = _chosen(model, pair, plan)
    from converter.pages.proof import shown

    with shown(html, overwrite) as show, progress_for(quiet) as progress:
        report = converter.verify(
            model,
            checkpoint,
            weights,
            options,
            level=level,
            key=key,
            scope=scope,
            dialect=dialect,
            ignore=ignore,
            merge_lora=_merging(merge_lora, lora_scale),
            progress=progress,
        )
        show(report)
    if not quiet:
        print_report(report, as_json, *_page(html))
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


def _generating(option: str, kind: click.ParamType, text: str, usual: float) -> Callable[[Any], Any]:
    """An option that `AutomaticMaskGenerator` knows by the same name; None where it is not given."""
    return click.option(option, type=kind, help=f"{text}  [default: {usual}]")


_POINT, _BOX = _Numbers("X", "Y"), _Numbers("X0", "Y0", "X1", "Y1")


@main.command()
@click.argument("weights", type=click.Path())
@click.argument("picture", type=click.Path())
@click.argument("beam", nargs=-1, type=click.UNPROCESSED, metavar="[-- BEAM OPTIONS]")
@click.option("--point", "points", type=_POINT, metavar="X,Y", multiple=True, help="A pixel on the object.")
@click.option("--background", type=_POINT, metavar="X,Y", multiple=True, help="A pixel that is not of the object.")
@click.option("--box", "boxes", type=_BOX, metavar="X0,Y0,X1,Y1", multiple=True, help="A box around an object.")
@click.option("--everything", is_flag=True, help="Find all objects, without prompts.")
@_generating("--points-per-side", click.IntRange(1), "With --everything: a grid of this many points squared.", 32)
@_generating("--pred-iou-thresh", click.FloatRange(0, 1), "Keep masks whose estimated IoU is above this.", 0.88)
@_generating("--stability-score-thresh", click.FloatRange(0, 1), "Keep masks at least so stable.", 0.95)
@_generating("--box-nms-thresh", click.FloatRange(0, 1), "Of masks whose boxes overlap more, keep the best.", 0.7)
@_generating("--crop-n-layers", click.IntRange(0, 4), "Look at crops too: 4 in the first layer, 16 in the next.", 0)
@_generating("--min-mask-region-area", click.IntRange(0), "Fill holes and clear islands of fewer pixels.", 0)
@click.option(
    "--output", "-o", type=click.Path(),
    help="Draw the masks over the picture, into this file; of a folder, the folder of the results.",
)  # fmt: skip
@click.option("--masks", type=click.Path(path_type=Path), metavar="FOLDER", help="Write each mask there: 1.png, ...")
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@_LIKE
@click.option(
    "--prompts", type=click.Path(), metavar="FILE",
    help="Of a folder: a JSON object a line, {\"picture\": NAME, \"points\": [[X, Y]], \"boxes\": ...}.",
)  # fmt: skip
@click.option(
    "--batch-size", type=click.IntRange(1), default=1, show_default=True,
    help="Of a folder: pictures of one size at once in the network; more keep a GPU busy.",
)  # fmt: skip
@click.option(
    "--shard-size",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Of a folder: pictures in a result file.",
)
@click.option("--retry", is_flag=True, help="Of a folder: try broken pictures of an earlier run again.")
@_JSON
@_QUIET
@answering
def segment(
    weights: str,
    picture: str,
    beam: tuple[str, ...],
    points: tuple,
    background: tuple,
    boxes: tuple,
    everything: bool,
    output: str | None,
    masks: Path | None,
    overwrite: bool,
    like: Path | None,
    prompts: str | None,
    batch_size: int,
    shard_size: int,
    retry: bool,
    as_json: bool,
    quiet: bool,
    **generating: float | None,
) -> None:
    """Segment a PICTURE with the converted WEIGHTS of a whole SAM.

    All points, with the box if there is one, describe one object; several boxes are several objects. --json prints the
    masks as COCO's RLE.

    PICTURE may be a folder, or a .txt file that names a picture a line. Then the results are COCO files in the folder
    --output, and a run that was stopped goes on when it is started again. It runs on Apache Beam, whose options may
    follow after --.
    """
    given = {name: value for name, value in generating.items() if value is not None}
    if os.path.isdir(picture) or picture.endswith(".txt") or "://" in picture:
        if points or background or boxes or masks is not None or overwrite:
            raise click.UsageError("--point, --background, --box, --masks and --overwrite are for a single picture")
        if like is not None:
            from tf_models.runtime.weights_format import SUFFIX

            raise click.UsageError(
                "--like is for a single picture; write a file that needs none, and name that: python -c "
                f"\"import tf_models as m; m.save(m.load('{weights}', like='{like}'), 'new{SUFFIX}')\""
            )
        if everything == (prompts is not None):
            raise click.UsageError("of a folder, give --everything, or --prompts with points and boxes of each picture")
        if output is None:
            raise click.UsageError("give --output, the folder of the results")
        how = {"prompts": prompts, "batch_size": batch_size, "shard_size": shard_size, "retry": retry, "options": beam}
        _segment_all(weights, picture, output, given, how, as_json, quiet)
        return
    from converter.files.atomic import NewFile
    from tf_models.pictures.reading import read_picture
    from tf_models.segmenting.segment import SUFFIXES, check_drawing, check_folder, segment

    image = read_picture(picture)  # first, since a name that is wrong may be meant for a folder
    if beam or prompts is not None or retry:
        raise click.UsageError(f"{picture} is a single picture; --prompts, --retry and Beam's options are for a folder")
    if output is None and masks is None and not as_json:
        raise click.UsageError("nothing is to be written: give --output, --masks or --json")
    drawing = None
    if output is not None:
        drawing = NewFile(Path(output), overwrite, SUFFIXES, [Path(weights), Path(picture)])
        check_drawing(Path(output), image)
    if masks is not None:
        check_folder(masks)
    with progress_for(quiet) as progress:
        result = segment(weights, picture, points, background, boxes, everything, progress, given, like)
    if drawing is not None:
        with drawing.written() as temporary:
            result.save_drawing(temporary)
    if masks is not None:
        result.save_masks(masks)
    if as_json:
        print_json(result.to_dict())
    elif not quiet:
        written = [f"{'written':<9} {path}" for path in (output, masks) if path is not None]
        print_lines(*str(result).split("\n"), *written)


def _segment_all(
    weights: str,
    pictures: str,
    output: str,
    generating: dict[str, float],
    how: dict[str, Any],
    as_json: bool,
    quiet: bool,
) -> None:
    from tf_models.pictures import running
    from tf_models.segmenting.task import Segmenting

    with progress_for(quiet) as progress:
        summary = running.over(Segmenting(generating), weights, pictures, output, **how, progress=progress)
    if as_json:
        print_json(summary.to_dict())
    elif not quiet:
        print_lines(*str(summary).split("\n"), f"{'written':<9} {output}")


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
@click.option(
    "--part", help="Of a whole Segment Anything: image_encoder, prompt_encoder or mask_decoder.",
    shell_complete=completion.parts,
)  # fmt: skip
@click.option(
    "--size", "sizes", multiple=True, callback=_sizes, metavar="AXIS=LENGTH", shell_complete=completion.sizes,
    help="Length of an axis that tflite fixes, as prompts=4; docs/export.md lists them.",
)  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@_LIKE
@_PAIR
@_JSON
@_QUIET
@answering
def export(
    file: Path,
    format: str,
    dtype: str,
    output: Path | None,
    part: str | None,
    sizes: dict[str, int],
    overwrite: bool,
    like: Path | None,
    pair: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Export a converted FILE as a SavedModel or for TensorFlow Lite, and compare it with the Keras model."""
    import converter

    _chosen("auto", pair)
    with progress_for(quiet) as progress:
        report = converter.export(
            file, output, format, dtype=dtype, part=part, sizes=sizes, overwrite=overwrite, progress=progress, like=like
        )
    if not quiet:
        print_report(report, as_json)


@main.command()
@click.argument("weights", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), required=True, help="A .pth, .pt, .bin or .safetensors file."
)
@click.option("--dialect", metavar="NAME", help="Whose names and layouts to write; by default the checkpoint's own.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@_LIKE
@_PAIR
@_PLAN
@_JSON
@_QUIET
@answering
def restore(
    weights: Path,
    output: Path,
    dialect: str | None,
    overwrite: bool,
    like: Path | None,
    pair: str | None,
    plan: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write the torch checkpoint that a converted FILE came from, bit for bit, or with the values of training."""
    import converter

    _chosen("auto", pair, plan)
    with progress_for(quiet) as progress:
        report = converter.restore(weights, output, dialect, overwrite, progress, like)
    if not quiet:
        print_report(report, as_json)


@main.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--torch", "torch_build", metavar="MODULE:BUILDER",
    help="Builds the torch network, as torchvision.models:resnet50. Without it rows are proposed, and none is proven.",
)  # fmt: skip
@click.option(
    "--keras", "keras_build", metavar="MODULE:BUILDER", required=True,
    help="Builds the Keras model; arguments may follow, as keras.applications:ResNet50?weights=None.",
)  # fmt: skip
@click.option(
    "--inputs", metavar="MODULE:FUNCTION",
    help="Gives inputs: (torch's, Keras's), or torch's alone, which are laid out for Keras.",
)  # fmt: skip
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Where to write the plan: plan.toml.")
@click.option(
    "--option", "options", multiple=True, callback=_options, metavar="KEY=VALUE",
    help="An argument of the builders, of each that takes it; may be given several times.",
)  # fmt: skip
@click.option(
    "--accept", multiple=True, metavar="ROW",
    help="Take a row that is not proven: a path of torch's or Keras's, a variable, or the row as the plan prints it; "
    "* stands for any name.",
)  # fmt: skip
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write a page that shows it: plan.html.")
@click.option("--overwrite", is_flag=True, help="Replace an existing page, and a plan of other networks.")
@_JSON
@_QUIET
@answering
def match(
    checkpoint: Path,
    torch_build: str | None,
    keras_build: str,
    inputs: str | None,
    output: Path | None,
    options: dict[str, str],
    accept: tuple[str, ...],
    html: Path | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Find which tensor of a CHECKPOINT fills which variable of a Keras model, and write it as a plan.

    Both networks run on the same inputs. What their values confirm is proven, and nothing else is converted until you
    accept it: `convert --plan plan.toml CHECKPOINT`. A plan of the same networks is written anew, and your comments,
    accepted rows and reasons stay in it.
    """
    import converter
    from converter.files.atomic import NewFile
    from converter.matching.plan_file import check_output
    from converter.pages.match import match_page
    from converter.pages.page import ENDINGS, save

    if output is not None:
        check_output(output, torch_build or "", keras_build, overwrite)
    page = None if html is None else NewFile(html.expanduser(), overwrite, ENDINGS)
    with progress_for(quiet) as progress:
        found = converter.match(torch_build, keras_build, inputs, checkpoint, options, accept, progress)
    refused = None
    if output is not None:
        try:
            found.save(output, overwrite)
        except converter.ConversionError as error:
            refused = error  # the report is worth having all the same
    if page is not None:
        save(match_page(found), page)
    if not quiet:
        written = [("written", str(output))] if output is not None and refused is None else []
        print_report(found, as_json, *written, *_page(html))
    if refused is not None:
        raise refused


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
@answering
def new_pair(checkpoint: Path, output: Path, key: str | None, overwrite: bool, as_json: bool, quiet: bool) -> None:
    """Write a pair of your own for a CHECKPOINT, to start from: the mapping, and both networks' layers."""
    import converter

    report = converter.new_pair(checkpoint, output, key=key, overwrite=overwrite)
    if not quiet:
        print_report(report, as_json)


if __name__ == "__main__":
    main()
