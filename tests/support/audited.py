"""A small network on both sides to be audited, and what may be wrong with it. Neither framework is imported here."""

import numpy as np


def torch_net():
    from torch import nn

    return nn.Sequential(
        dict_of(
            conv1=nn.Conv2d(3, 8, 3, padding=1),
            bn1=nn.BatchNorm2d(8),
            act1=nn.ReLU(),
            conv2=nn.Conv2d(8, 8, 3, stride=2, padding=1),
            bn2=nn.BatchNorm2d(8),
            act2=nn.Hardswish(),
            conv3=nn.Conv2d(8, 8, 3, padding=1),
            bn3=nn.BatchNorm2d(8),
            act3=nn.GELU(),
            conv4=nn.Conv2d(8, 8, 3, padding=1),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            fc1=nn.Linear(8, 16),
            norm=nn.LayerNorm(16),
            act4=nn.SiLU(),
            fc2=nn.Linear(16, 16),
            end=nn.Tanh(),
        )
    )


def dict_of(**modules):
    from collections import OrderedDict

    return OrderedDict(modules)


def other_net():
    from torch import nn

    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten())


def trained():
    """torch's state dict, as of a trained network."""
    import torch

    net = torch_net()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                values = torch.rand(tensor.shape, generator=generator)
                positive = tensor.ndim == 1 and name.endswith(("weight", "var"))
                tensor.copy_(values + 0.5 if positive else (values - 0.5) * (0.6 if tensor.ndim > 1 else 1))
    return net.state_dict()


def keras_net(
    *, rescaled=False, epsilon=1e-5, momentum=0.9, padding=1, approximate=False, strides=(2, 1), end="tanh", more=False
):
    """The same network; each argument makes something else of it."""
    import keras
    from keras import layers as l

    at = given = keras.Input((12, 12, 3))
    if rescaled:
        at = l.Rescaling(1 / 255, name="rescaling")(at)
    at = l.Conv2D(8, 3, padding="same", name="conv1")(at)
    at = l.BatchNormalization(epsilon=epsilon, momentum=0.9, name="bn1")(at)
    at = l.ReLU(name="act1")(at)
    at = l.ZeroPadding2D(padding, name="pad2")(at)
    at = l.Conv2D(8, 3, strides=strides[0], name="conv2")(at)
    at = l.BatchNormalization(epsilon=1e-5, momentum=momentum, name="bn2")(at)
    at = l.Activation(keras.activations.hard_swish, name="act2")(at)
    at = l.ZeroPadding2D(1, name="pad3")(at)
    at = l.Conv2D(8, 3, strides=strides[1], name="conv3")(at)
    at = l.BatchNormalization(epsilon=1e-5, momentum=0.9, name="bn3")(at)
    at = l.Activation(lambda x: keras.ops.gelu(x, approximate=approximate), name="act3")(at)
    at = l.Conv2D(8, 3, padding="same", name="conv4")(at)
    at = l.GlobalAveragePooling2D(name="pool")(at)
    at = l.Dense(16, name="fc1")(at)
    if more:
        at = l.Dense(16, name="more")(at)
    at = l.LayerNormalization(epsilon=1e-5, name="norm")(at)
    at = l.Activation("silu", name="act4")(at)
    return keras.Model(given, l.Dense(16, activation=end, name="fc2")(at), name="port")


def filled(state, **options):
    """The Keras network with torch's values."""
    from converter.planning.variables import fresh_names

    with fresh_names():
        model = keras_net(**options)
    for name, tensor in state.items():
        path, _, leaf = name.rpartition(".")
        if leaf == "num_batches_tracked":
            continue
        value = tensor.numpy()
        layer = model.get_layer(path)
        if value.ndim == 4:
            layer.kernel.assign(value.transpose(2, 3, 1, 0))
        elif value.ndim == 2:
            layer.kernel.assign(value.T)
        else:
            norm = not hasattr(layer, "kernel")
            words = {"weight": "gamma", "bias": "beta"} if norm else {"bias": "bias"}
            words |= {"running_mean": "moving_mean", "running_var": "moving_variance"}
            getattr(layer, words[leaf]).assign(value)
    return model


def other_keras_net():
    import keras

    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])


def words_net():
    import torch
    from torch import nn

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(4)
            self.words, self.types, self.places = nn.Embedding(11, 8), nn.Embedding(3, 8), nn.Embedding(5, 8)
            self.norm, self.dense = nn.LayerNorm(8), nn.Linear(8, 4)

        def forward(self, words, types):
            both = self.words(words) + self.types(types)
            return self.dense(self.norm(both + self.places(torch.arange(5))))

    return Words()


def filled_words(state):
    """The same on Keras's side, which adds positions before it adds types; with torch's values."""
    import keras
    from keras import layers as l

    given = [keras.Input((5,), dtype="int32") for _ in range(2)]
    places = l.Embedding(5, 8, name="places")(keras.ops.arange(5)[None] + 0 * given[0])
    at = l.Embedding(11, 8, name="words")(given[0]) + places + l.Embedding(3, 8, name="types")(given[1])
    at = l.LayerNormalization(epsilon=1e-5, name="norm")(at)
    model = keras.Model(given, l.Dense(4, name="dense")(at))
    for name in ("words", "types", "places"):
        model.get_layer(name).set_weights([state[f"{name}.weight"].numpy()])
    model.get_layer("norm").set_weights([state["norm.weight"].numpy(), state["norm.bias"].numpy()])
    model.get_layer("dense").set_weights([state["dense.weight"].numpy().T, state["dense.bias"].numpy()])
    return model


def give_words():
    rng = np.random.default_rng(2)
    both = rng.integers(0, 11, (2, 5)), rng.integers(0, 3, (2, 5))
    return both, both


def give():
    return (np.random.default_rng(1).standard_normal((2, 3, 12, 12), dtype=np.float32),)


def refused():
    return (np.zeros((2, 5, 12, 12), np.float32),)
