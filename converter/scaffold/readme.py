"""The page that a new pair has: what is certain, what is a guess, and what to do next."""

from converter.errors import one_line
from converter.scaffold.rows import Line


def readme(name: str, lines: list[Line], tensors: int, lossless: str, full: str, heads: int) -> str:
    """The text; `lossless` and `full` are the commands that convert."""
    certain = [line for line in lines if line.certain]
    guessed = [line for line in lines if not line.certain]
    text = [
        f"# {name}",
        "",
        f"A pair of a torch and a Keras network, made of the names and shapes of {tensors} tensors. It runs as it is:",
        "",
        "```sh",
        one_line(lossless),
        "```",
        "",
        "writes the weights and reads them back, equal bit for bit. Give it in the folder that holds this one.",
        "",
        "## Certain",
        "",
        *_listed(certain),
        "",
        "## Guessed",
        "",
        "A wrong guess converts too, because shapes rarely tell; only the proof of what the networks compute shows it.",
        "If one is wrong, change the row in `pair.py` and the layer in both networks.",
        "",
        *_listed(guessed),
        "",
        "No tensor shows strides, paddings, dilations, groups, epsilons, activations or the order of the layers. The",
        "layers have torch's defaults of these on both sides.",
    ]
    if heads:
        text += [f"Nor the number of heads: `num_heads` is {heads} unless `--option num_heads=` says otherwise."]
    text += [
        "",
        "## Next",
        "",
        "1. `torch_side.py`: if you have the network's own class, have `build` return it. Otherwise write each",
        "   `forward`, and correct strides, paddings and groups.",
        "2. `keras_side.py`: write each `call`, and correct the same there. Tensors are channels last.",
        "3. `pair.py`: `probes` are the inputs to try it with; `outputs` names what the networks return, and",
        "   `channels_first` which of both are images.",
        "4. Convert with the whole proof. It names the first layer that differs:",
        "",
        "```sh",
        one_line(full),
        "```",
        "",
    ]
    return "\n".join(text)


def _listed(lines: list[Line]) -> list[str]:
    if not lines:
        return ["Nothing."]
    return [f"- `{line.path}`: {line.kind.removeprefix('kinds.') or 'dropped'}, because {line.why}" for line in lines]
