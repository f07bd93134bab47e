"""Classifiers of images, made of convolutions."""

from typing import Any

import keras
from keras import ops

from benchmarks.soundness.tf_networks.parts import (
    Identity,
    Layer,
    Model,
    act,
    batch_norm,
    built,
    chain,
    conv,
    dense,
    gelu,
    layer_norm,
    max_pool,
    pad,
)
from tf_models import layers


class BasicBlock(Layer):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, width: int, stride: int, project: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.conv1, self.bn1 = conv(width, 3, stride, bias=False), batch_norm()
        self.conv2, self.bn2 = conv(width, 3, bias=False), batch_norm()
        self.downsample = [conv(width, 1, stride, bias=False), batch_norm()] if project else None

    def branch(self, x: Any) -> Any:
        return self.bn2(self.conv2(ops.relu(self.bn1(self.conv1(x)))))

    def shortcut(self, x: Any) -> Any:
        return x if self.downsample is None else chain(self.downsample, x)

    def call(self, x: Any) -> Any:
        return ops.relu(self.branch(x) + self.shortcut(x))


class Bottleneck(BasicBlock):
    """1x1, 3x3 (which has the stride), 1x1 convolutions and a shortcut."""

    expansion = 4

    def __init__(self, width: int, stride: int, project: bool, **kwargs: Any) -> None:
        Layer.__init__(self, **kwargs)
        self.conv1, self.bn1 = conv(width, 1, bias=False), batch_norm()
        self.conv2, self.bn2 = conv(width, 3, stride, bias=False), batch_norm()
        self.conv3, self.bn3 = conv(4 * width, 1, bias=False), batch_norm()
        self.downsample = [conv(4 * width, 1, stride, bias=False), batch_norm()] if project else None

    def branch(self, x: Any) -> Any:
        x = ops.relu(self.bn1(self.conv1(x)))
        x = ops.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))


class ResNet(Model):
    """ResNet as torchvision and timm have it."""

    def __init__(self, block: Any, depths: Any, channels: Any, classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.conv1, self.bn1 = conv(64, 7, 2, bias=False), batch_norm()
        width = 64
        for index, (depth, channel) in enumerate(zip(depths, channels, strict=True)):
            stride = 1 if index == 0 else 2
            project = stride > 1 or width != channel * block.expansion
            blocks = [block(channel, stride, project), *(block(channel, 1, False) for _ in range(depth - 1))]
            setattr(self, f"layer{index + 1}", blocks)
            width = channel * block.expansion
        self.fc = dense(classes)

    def pool(self, x: Any) -> Any:
        return max_pool(x, 3, 2, 1)

    def call(self, x: Any) -> Any:
        x = self.pool(ops.relu(self.bn1(self.conv1(x))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = chain(stage, x)
        return self.fc(ops.mean(x, (1, 2)))


BLOCKS = {"BasicBlock": BasicBlock, "Bottleneck": Bottleneck}


def resnet(
    block: str = "BasicBlock", layers: Any = (1, 1, 1, 1), channels: Any = (12, 16, 20, 24), classes: int = 7
) -> Any:
    return built(ResNet(BLOCKS[block], layers, channels, classes), (1, 64, 64, 3))


def resnet_functional(channels: Any = (12, 16, 20, 24), classes: int = 7, pool_value: float = float("-inf")) -> Any:
    """The same network as Keras users write it: functional, layers found by name, ZeroPadding2D before strides."""
    x = first = keras.Input((None, None, 3))

    def strided(x: Any, filters: int, kernel: int, stride: int, name: str) -> Any:
        if stride > 1 and kernel > 1:
            x = keras.layers.ZeroPadding2D(kernel // 2)(x)
            return keras.layers.Conv2D(filters, kernel, strides=stride, use_bias=False, name=name)(x)
        return keras.layers.Conv2D(filters, kernel, strides=stride, padding="same", use_bias=False, name=name)(x)

    def norm(x: Any, name: str) -> Any:
        return keras.layers.BatchNormalization(epsilon=1e-5, name=name)(x)

    x = norm(strided(x, 64, 7, 2, "conv1"), "bn1")
    x = keras.layers.ReLU()(x)
    x = ops.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=pool_value)
    x = keras.layers.MaxPooling2D(3, 2)(x)
    for index, channel in enumerate(channels):
        stride, name = (1 if index == 0 else 2), f"layer{index + 1}.0"
        shortcut = norm(strided(x, channel, 1, stride, f"{name}.downsample.0"), f"{name}.downsample.1")
        y = norm(strided(x, channel, 3, stride, f"{name}.conv1"), f"{name}.bn1")
        y = keras.layers.ReLU()(y)
        y = norm(strided(y, channel, 3, 1, f"{name}.conv2"), f"{name}.bn2")
        x = keras.layers.ReLU()(keras.layers.Add()([y, shortcut]))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(first, keras.layers.Dense(classes, name="fc")(x))


class SqueezeExcitation(Layer):
    """A factor for each channel, of the mean over the image."""

    def __init__(self, channels: int, squeezed: int, inner: str, outer: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.fc1, self.fc2 = conv(squeezed, 1), conv(channels, 1)
        self.inner, self.outer = keras.activations.get(inner), keras.activations.get(outer)

    def squeeze(self, x: Any) -> Any:
        return ops.mean(x, (1, 2), keepdims=True)

    def call(self, x: Any) -> Any:
        return x * self.outer(self.fc2(self.inner(self.fc1(self.squeeze(x)))))


def conv_norm_act(filters: int, kernel: int, stride: int, activation: str | None, epsilon: float) -> list:
    """torchvision's Conv2dNormActivation."""
    made = [conv(filters, kernel, stride, bias=False), batch_norm(epsilon)]
    return made if activation is None else [*made, act(activation)]


def depthwise_norm_act(kernel: int, stride: int, activation: str, epsilon: float, dilation: int = 1) -> list:
    padding = (kernel - 1) // 2 * dilation
    layer = layers.DepthwiseConv2D(kernel, strides=stride, padding=padding, dilation_rate=dilation, use_bias=False)
    return [layer, batch_norm(epsilon), act(activation)]


class InvertedResidual(Layer):
    """The block of MobileNetV3 and of EfficientNet: `block` holds lists of layers and the squeeze-excitation."""

    def __init__(self, block: list, residual: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.block, self.residual = block, residual

    def branch(self, x: Any) -> Any:
        for part in self.block:
            x = part(x) if callable(part) else chain(part, x)
        return x

    def call(self, x: Any) -> Any:
        y = self.branch(x)
        return y + x if self.residual else y


class MobileNet(Model):
    """MobileNetV3 with the rows of `torch_networks.mobilenet`."""

    def __init__(self, classes: int = 7, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        e = 1e-3
        hard = "hard_silu"
        squeeze = ("relu", "hard_sigmoid")
        self.features = [
            conv_norm_act(8, 3, 2, hard, e),
            InvertedResidual(
                [
                    conv_norm_act(16, 1, 1, "relu", e),
                    depthwise_norm_act(3, 1, "relu", e),
                    SqueezeExcitation(16, 8, *squeeze),
                    conv_norm_act(8, 1, 1, None, e),
                ],
                True,
            ),
            InvertedResidual(
                [
                    conv_norm_act(24, 1, 1, hard, e),
                    depthwise_norm_act(5, 2, hard, e),
                    SqueezeExcitation(24, 8, *squeeze),
                    conv_norm_act(16, 1, 1, None, e),
                ],
                False,
            ),
            InvertedResidual(
                [
                    conv_norm_act(32, 1, 1, hard, e),
                    depthwise_norm_act(3, 1, hard, e, dilation=2),
                    conv_norm_act(16, 1, 1, None, e),
                ],
                True,
            ),
            conv_norm_act(96, 1, 1, hard, e),
        ]
        self.classifier = [dense(20), act(hard), keras.layers.Dropout(0.2), dense(classes)]

    def pooled(self, x: Any) -> Any:
        return ops.mean(x, (1, 2))

    def call(self, x: Any) -> Any:
        for part in self.features:
            x = part(x) if callable(part) else chain(part, x)
        return chain(self.classifier, self.pooled(x))


def mobilenet() -> Any:
    return built(MobileNet(), (1, 32, 48, 3))


class EfficientNet(MobileNet):
    """EfficientNet with the rows of `torch_networks.efficientnet`."""

    def __init__(self, classes: int = 7, **kwargs: Any) -> None:
        Model.__init__(self, **kwargs)
        e = 1e-5

        def mbconv(expand: int, kernel: int, stride: int, inputs: int, outputs: int) -> Any:
            inner = expand * inputs
            parts = [conv_norm_act(inner, 1, 1, "silu", e)] if expand > 1 else []
            parts += [
                depthwise_norm_act(kernel, stride, "silu", e),
                SqueezeExcitation(inner, max(1, inputs // 4), "silu", "sigmoid"),
                conv_norm_act(outputs, 1, 1, None, e),
            ]
            return InvertedResidual(parts, stride == 1 and inputs == outputs)

        self.features = [
            conv_norm_act(8, 3, 2, "silu", e),
            [mbconv(1, 3, 1, 8, 8)],
            [mbconv(4, 3, 2, 8, 16), mbconv(4, 3, 1, 16, 16)],
            [mbconv(4, 5, 2, 16, 24)],
            conv_norm_act(32, 1, 1, "silu", e),
        ]
        self.classifier = [keras.layers.Dropout(0.2), dense(classes)]


def efficientnet() -> Any:
    return built(EfficientNet(), (1, 32, 48, 3))


class Fire(Layer):
    """SqueezeNet's module: a narrow convolution, then two side by side."""

    def __init__(self, squeezed: int, wide: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.squeeze, self.expand1x1, self.expand3x3 = conv(squeezed, 1), conv(wide, 1), conv(wide, 3)

    def call(self, x: Any) -> Any:
        x = ops.relu(self.squeeze(x))
        return ops.concatenate([ops.relu(self.expand1x1(x)), ops.relu(self.expand3x3(x))], -1)


class CeilPool(Layer):
    """Max pooling whose last window may reach beyond the image."""

    def call(self, x: Any) -> Any:
        return max_pool(x, 3, 2, ceil=True)


class SqueezeNet(Model):
    """SqueezeNet 1.1."""

    def __init__(self, classes: int = 7, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.features = [
            conv(64, 3, 2, padding=0), act("relu"), CeilPool(),
            Fire(16, 64), Fire(16, 64), CeilPool(),
            Fire(32, 128), Fire(32, 128), CeilPool(),
            Fire(48, 192), Fire(48, 192), Fire(64, 256), Fire(64, 256),
        ]  # fmt: skip
        self.classifier = [keras.layers.Dropout(0.5), conv(classes, 1), act("relu")]

    def call(self, x: Any) -> Any:
        return ops.mean(chain(self.classifier, chain(self.features, x)), (1, 2))


def squeezenet() -> Any:
    return built(SqueezeNet(), (1, 40, 60, 3))


class DenseLayer(Layer):
    """Normalises first; what it makes is appended to what it got."""

    def __init__(self, growth: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.norm1, self.conv1 = batch_norm(), conv(2 * growth, 1, bias=False)
        self.norm2, self.conv2 = batch_norm(), conv(growth, 3, bias=False)

    def call(self, x: Any) -> Any:
        return self.conv2(ops.relu(self.norm2(self.conv1(ops.relu(self.norm1(x))))))


class DenseBlock(Layer):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.denselayer1, self.denselayer2 = DenseLayer(6), DenseLayer(6)

    def call(self, x: Any) -> Any:
        x = ops.concatenate([x, self.denselayer1(x)], -1)
        return ops.concatenate([x, self.denselayer2(x)], -1)


class Transition(Layer):
    def __init__(self, filters: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.norm, self.conv = batch_norm(), conv(filters, 1, bias=False)

    def call(self, x: Any) -> Any:
        return ops.average_pool(self.conv(ops.relu(self.norm(x))), 2, 2)


class DenseFeatures(Layer):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.conv0, self.norm0 = conv(8, 7, 2, bias=False), batch_norm()
        self.denseblock1, self.transition1 = DenseBlock(), Transition(10)
        self.denseblock2, self.norm5 = DenseBlock(), batch_norm()

    def call(self, x: Any) -> Any:
        x = max_pool(ops.relu(self.norm0(self.conv0(x))), 3, 2, 1)
        return self.norm5(self.denseblock2(self.transition1(self.denseblock1(x))))


class DenseNet(Model):
    """DenseNet of two blocks."""

    def __init__(self, classes: int = 7, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.features, self.classifier = DenseFeatures(), dense(classes)

    def call(self, x: Any) -> Any:
        return self.classifier(ops.mean(ops.relu(self.features(x)), (1, 2)))


def densenet() -> Any:
    return built(DenseNet(), (1, 32, 48, 3))


class BasicConv(Layer):
    """A convolution without bias, normalised with epsilon 1e-3, and ReLU."""

    def __init__(self, filters: int, kernel: int, stride: int = 1, padding: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.conv, self.bn = conv(filters, kernel, stride, bias=False, padding=padding), batch_norm(1e-3)

    def call(self, x: Any) -> Any:
        return ops.relu(self.bn(self.conv(x)))


class InceptionA(Layer):
    """Four branches side by side."""

    def __init__(self, pool_features: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.branch1x1 = BasicConv(64, 1)
        self.branch5x5_1, self.branch5x5_2 = BasicConv(48, 1), BasicConv(64, 5, padding=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = BasicConv(64, 1), BasicConv(96, 3, padding=1)
        self.branch3x3dbl_3 = BasicConv(96, 3, padding=1)
        self.branch_pool = BasicConv(pool_features, 1)

    def pooled(self, x: Any) -> Any:
        return ops.average_pool(pad(x, 1), 3, 1)  # the zeros count

    def call(self, x: Any) -> Any:
        return ops.concatenate(
            [
                self.branch1x1(x),
                self.branch5x5_2(self.branch5x5_1(x)),
                self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
                self.branch_pool(self.pooled(x)),
            ],
            -1,
        )


class Inception(Model):
    def __init__(self, classes: int = 7, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stem, self.mixed, self.fc = BasicConv(10, 3, 2), InceptionA(12), dense(classes)

    def call(self, x: Any) -> Any:
        return self.fc(ops.mean(self.mixed(self.stem(x)), (1, 2)))


def inception() -> Any:
    return built(Inception(), (1, 21, 27, 3))


class CNBlock(Layer):
    """ConvNeXt's block: a depthwise 7x7 convolution, normalisation, two linear layers, LayerScale, residual."""

    def __init__(self, dim: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        depthwise = layers.DepthwiseConv2D(7, padding=3)
        self.block = [depthwise, Identity(), layer_norm(), dense(4 * dim), gelu(), dense(dim), Identity()]
        self.layer_scale = self.add_weight(name="layer_scale", shape=(dim,), initializer="ones")

    def branch(self, x: Any) -> Any:
        return self.layer_scale * chain(self.block, x)

    def call(self, x: Any) -> Any:
        return x + self.branch(x)


class ConvNeXt(Model):
    """Each normalisation is a layer over the channels; the head normalises the mean."""

    def __init__(self, dims: Any, depths: Any, classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        features: list = [[layers.Conv2D(dims[0], 4, strides=4), layer_norm()]]
        for index, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            features.append([CNBlock(dim) for _ in range(depth)])
            if index + 1 < len(dims):
                features.append([layer_norm(), layers.Conv2D(dims[index + 1], 2, strides=2)])
        self.features = features
        self.classifier = [layer_norm(), keras.layers.Flatten(), dense(classes)]

    def call(self, x: Any) -> Any:
        for part in self.features:
            x = chain(part, x)
        return chain(self.classifier, ops.mean(x, (1, 2), keepdims=True))


def convnext(dims: Any = (12, 20), depths: Any = (2, 1), classes: int = 7) -> Any:
    return built(ConvNeXt(dims, depths, classes), (1, 32, 48, 3))


def lenet(flat: str = "channels first", pool_value: float = float("-inf"), softmax: bool = True) -> Any:
    """Functional; the map is flattened in torch's order, channels first."""
    x = first = keras.Input((20, 28, 1))
    x = keras.layers.Conv2D(6, 5, padding="same", name="conv1")(x)
    x = ops.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=pool_value)
    x = ops.tanh(keras.layers.MaxPooling2D(3, 2)(x))
    x = keras.layers.MaxPooling2D(2)(ops.relu(keras.layers.Conv2D(10, 5, name="conv2")(x)))
    orders = {"channels first": (3, 1, 2), "as it is": (1, 2, 3), "columns first": (3, 2, 1)}
    x = keras.layers.Flatten()(keras.layers.Permute(orders[flat])(x))
    x = keras.layers.BatchNormalization(epsilon=1e-5, name="bn")(keras.layers.Dense(20, name="fc1")(x))
    x = keras.layers.Dense(7, name="fc2")(keras.layers.ReLU()(x))
    return keras.Model(first, keras.layers.Softmax()(x) if softmax else x)


def chained(
    second: str = "zeros before", activations: Any = ("relu", "relu", "tanh", "relu", "softmax"), bias: bool = True
) -> Any:
    """Functional, each activation inside its layer."""
    x = first = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(8, 3, padding="same", activation=activations[0], name="conv1")(x)
    if second == "zeros before":
        x = keras.layers.ZeroPadding2D(1)(x)
    padding = "valid" if second == "zeros before" else "same"
    x = keras.layers.Conv2D(12, 3, strides=2, padding=padding, activation=activations[1], name="conv2")(x)
    x = keras.layers.BatchNormalization(epsilon=1e-5, name="bn")(x)
    x = keras.layers.Conv2D(12, (3, 5), padding="same", activation=activations[2], name="conv3", use_bias=bias)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dense(20, activation=activations[3], name="fc1")(x)
    return keras.Model(first, keras.layers.Dense(7, activation=activations[4], name="fc2")(x))


class TwoHeads(Model):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.conv, self.left, self.right = conv(8, 3), dense(5), dense(5)

    def call(self, x: Any) -> Any:
        x = ops.mean(ops.relu(self.conv(x)), (1, 2))
        return self.left(x), self.right(x)


def two_heads() -> Any:
    return built(TwoHeads(), (1, 12, 15, 3))


def vgg(first: str = "relu") -> Any:
    """Sequential, each activation inside its layer."""
    return keras.Sequential(
        [
            keras.Input((None, None, 3)),
            keras.layers.Conv2D(8, 3, padding="same", activation=first),
            keras.layers.MaxPooling2D(2),
            keras.layers.Conv2D(12, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(12, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(2),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(20, activation="relu"),
            keras.layers.Dense(7),
        ]
    )
