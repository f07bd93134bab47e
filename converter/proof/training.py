"""The TensorFlow half of `--verify train`: gradients, moving statistics and a few steps, against torch's."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from converter import nested
from converter.blame import where_and_what
from converter.errors import ConversionError
from converter.kinds.activations import arranged
from converter.naming import fold, listed
from converter.planning.steps import Step
from converter.planning.variables import layer_at
from converter.report import Comparison
from converter.torch_side.answers import Trained

if TYPE_CHECKING:
    from converter.proof.numerical import Proof

_RATES = ("rate", "dropout", "drop_rate", "drop_prob", "dropout_rate", "attention_dropout", "recurrent_dropout")
_MOMENTUM = "its momentum (torch's 0.1 is 0.9 in Keras, whose default is 0.99), or training mode"


def compare_training(proof: "Proof", message: Trained) -> None:
    """Take the same steps as torch did, and compare every gradient, statistic and weight.

    Raises:
        ConversionError: the model fails in training mode.
    """
    steps = [step for step in proof.plan.steps if not step.leaf.computed]
    trained = [step for step in steps if all(one.canonical in message.gradients for one in step.sources)]
    before = {path: np.array(variable) for path, variable in proof.variables.items()}
    undone = _without_dropout(proof.model)
    told = (
        f"{len(proof.plan.folded)} tensors are folded with others: neither side trains them, and their gradients are "
        "not compared"
    )
    if proof.plan.folded and told not in proof.by_design:
        proof.by_design.append(told)
    constant = [path for path in proof.plan.constants if proof.variables[path].trainable]
    told = (
        f"{len(constant)} variables hold constants that torch does not have, and Keras trains them: "
        f"{listed(fold(constant), 4)}; set `trainable = False` on each, so that both sides train alike"
    )
    if constant and told not in proof.by_design:
        proof.by_design.append(told)
    try:
        for number in range(message.steps):
            gradients = _gradients(proof, message)
            if number == 0:
                _check_padding(proof, trained, message.padding)
                for step in trained:
                    _compare(proof, "gradient of {}", step, gradients, message.gradients)
                for path in (one.path for step in steps if step not in trained for one in step.targets):
                    if path in gradients:
                        told = "the Keras variable is trainable, torch does not train its tensor"
                        proof.note_trained(Comparison(f"gradient of {path}", note=told), "")
                _compare_statistics(proof, message, steps, before)
            for step in trained:
                rates = [np.full(one.entry.shape, message.rates[one.canonical]) for one in step.sources]
                for target, by in zip(step.targets, step.lay_out(rates), strict=True):
                    if target.path in gradients:
                        proof.variables[target.path].assign_sub(by * gradients[target.path])
        after = {path: np.asarray(variable, np.float64) for path, variable in proof.variables.items()}
        for step in trained:
            _compare(proof, f"{{}} after {message.steps} steps", step, after, message.weights)
    except ConversionError:
        raise
    except Exception as error:
        raise ConversionError(
            f"the TensorFlow model of {proof.plan.pair.name} (build_tf) fails in training mode at "
            f"{where_and_what(error)}"
        ) from error
    finally:
        for layer, name, rate in undone:
            setattr(layer, name, rate)
        for path, value in before.items():
            proof.variables[path].assign(value)


def _gradients(proof: "Proof", message: Trained) -> dict[str, Any]:
    """Keras variable -> the gradient of the same loss as torch's; those that are trained."""
    from converter.proof.calling import call_on

    probe, pair = proof.question.probes[message.probe], proof.plan.pair
    # An output in a tuple, or alone, has the name that the pair gives to its place.
    known = dict(enumerate(pair.outputs))
    names = [
        path if path and not path.isdecimal() else known.get(place, "") for place, path in enumerate(message.upstream)
    ]
    upstream = {
        path: arranged(up, name, pair.activations)
        for name, (path, up) in zip(names, message.upstream.items(), strict=True)
    }
    trained = {path: variable for path, variable in proof.variables.items() if variable.trainable}
    with tf.GradientTape() as tape:
        results = call_on(proof.model, probe, pair.activations, training=True)
        outputs = {path: part for path, part in nested.flat(results) if part.dtype.is_floating}
        if probe.outputs is not None:
            pairs = [
                (outputs[mine], arranged(message.upstream[theirs], "", {"": axes} if axes else {}))
                for theirs, mine, axes in probe.outputs
                if theirs in message.upstream
            ]
        elif isinstance(results, Mapping) and set(outputs) == set(upstream):
            pairs = [(outputs[path], up) for path, up in upstream.items()]
        else:
            pairs = list(zip(outputs.values(), upstream.values(), strict=True))
        loss = tf.add_n([tf.reduce_sum(one * up) for one, up in pairs])
    found = tape.gradient(
        loss,
        {path: variable.value for path, variable in trained.items()},
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
    return {path: np.asarray(tf.convert_to_tensor(value), np.float64) for path, value in found.items()}


def _check_padding(proof: "Proof", steps: list[Step], padding: Mapping[str, int]) -> None:
    """An embedding keeps the row from training that torch's keeps, also where no probe looks it up."""
    for step in steps:
        layer = layer_at(proof.model, step.targets[0].path.rpartition(".")[0])
        if not isinstance(layer, keras.layers.Embedding):
            continue
        for source in step.sources:
            row, own = padding.get(source.canonical), getattr(layer, "padding_idx", None)
            if own != row:
                told = f"its padding_idx is {own}, torch's {row}: tf_models.layers.Embedding has it"
                proof.note_trained(Comparison(f"gradient of {step.targets[0].path}", note=told), "")


def _compare_statistics(proof: "Proof", message: Trained, steps: list[Step], before: dict[str, np.ndarray]) -> None:
    """Moving means and variances after one step; Keras's variance of a batch is by n, torch's by n - 1."""
    from converter.proof.comparing import compare

    apart: list[float] = []
    for step in steps:
        names = [one.canonical for one in step.sources]
        if not all(name in message.buffers for name in names):
            continue
        for target, (single, true, spread) in zip(step.targets, _laid_out(step, message.buffers), strict=True):
            path = target.path
            ours = np.asarray(proof.variables[path], np.float64)
            one = compare(f"{path} after a step", ours, single, true, spread)
            count, momentum = message.batches.get(names[0].rpartition(".")[0], (0, 0.0))
            if not one and names[0].endswith("running_var") and count > 1:
                # A step adds momentum * variance * n / (n - 1) in torch; without the factor that is one part in n less.
                biased = true - (true - (1 - momentum) * before[path]) / count
                again = compare(f"{path} after a step", ours, single - true + biased, biased, spread)
                if again:
                    apart.append(float(np.abs(true - biased).max()))
                    one = again
            proof.note_trained(one, _MOMENTUM)
    if apart:
        proof.by_design.append(
            f"{len(apart)} moving variances: Keras takes a batch's variance by n, torch by n - 1; after one step they "
            f"are up to {max(apart):.1e} apart"
        )


def _compare(
    proof: "Proof", name: str, step: Step, ours: dict[str, np.ndarray], theirs: dict[str, tuple[Any, Any, list[Any]]]
) -> None:
    """The gradients, or the weights, of a step's variables."""
    from converter.proof.comparing import compare

    for target, (own, truth, moved) in zip(step.targets, _laid_out(step, theirs), strict=True):
        label = name.format(target.path)
        if target.path not in ours:
            told = "the Keras variable is not trainable, torch's parameter is"
            proof.note_trained(Comparison(label, note=told), "")
        else:
            one = compare(label, ours[target.path], own, truth, moved)
            proof.note_trained(one, "what training mode computes otherwise")


def _laid_out(
    step: Step, values: dict[str, tuple[Any, Any, list[Any]]]
) -> list[tuple[np.ndarray, np.ndarray, list[np.ndarray]]]:
    """(torch's, truth, moved) for each variable of the step, out of those for each tensor."""
    singles, truths, spreads = zip(*(values[one.canonical] for one in step.sources), strict=True)
    own, truth = step.lay_out(singles), step.lay_out(truths)
    moved = [step.lay_out(run) for run in zip(*spreads, strict=True)]
    return [(own[place], truth[place], [run[place] for run in moved]) for place in range(len(step.targets))]


def _without_dropout(model: Any) -> list[tuple[Any, str, float]]:
    """Switch off what drops units at random: (layer, attribute, value) of what it was."""
    undone = []
    for layer in model._flatten_layers():
        for name in _RATES:
            rate = vars(layer).get(name)
            if isinstance(rate, float) and 0 < rate < 1:
                undone.append((layer, name, rate))
                setattr(layer, name, 0.0)
    return undone
