"""Networks whose outputs are images: segmentation, pyramids, super resolution, generation."""

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
    exact_gelu,
    max_pool,
    pad,
)
from tf_models import layers
from tf_models.ops import interpolate


class ASPP(Layer):
    """Dilated convolutions side by side, and the mean of the image."""

    def __init__(self, filters: int, rates: tuple[int, ...], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        first = [conv(filters, 1, bias=False), batch_norm(), act("relu")]
        dilated = [
            [conv(filters, 3, bias=False, padding=rate, dilation_rate=rate), batch_norm(), act("relu")]
            for rate in rates
        ]
        pooling = [Identity(), conv(filters, 1, bias=False), batch_norm(), act("relu")]
        self.convs = [first, *dilated, pooling]
        self.project = [conv(filters, 1, bias=False), batch_norm(), act("relu"), keras.layers.Dropout(0.5)]

    def mean(self, x: Any) -> Any:
        return ops.mean(x, (1, 2), keepdims=True)

    def call(self, x: Any) -> Any:
        *side, pooling = self.convs
        results = [chain(one, x) for one in side]
        mean = chain(pooling, self.mean(x))
        results.append(interpolate(mean, x.shape[1:3], mode="bilinear", align_corners=False))
        return chain(self.project, ops.concatenate(results, -1))


class Segmenter(Model):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stem, self.aspp, self.classifier = conv(10, 3, 2), ASPP(12, (2, 3)), conv(5, 1)

    def grown(self, x: Any, size: Any) -> Any:
        return interpolate(x, size, mode="bilinear", align_corners=False)

    def call(self, x: Any) -> Any:
        return self.grown(self.classifier(self.aspp(ops.relu(self.stem(x)))), x.shape[1:3])


def segmenter() -> Any:
    return built(Segmenter(), (1, 20, 28, 3))


class FeaturePyramid(Layer):
    """The three maps, each with what the coarser ones know."""

    def __init__(self, filters: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.inner_blocks = [[conv(filters, 1)] for _ in range(3)]
        self.layer_blocks = [[conv(filters, 3)] for _ in range(3)]

    def grown(self, x: Any, size: Any) -> Any:
        return interpolate(x, size, mode="nearest")

    def call(self, x: Any) -> Any:
        maps = list(x.values())
        last = chain(self.inner_blocks[-1], maps[-1])
        results = [chain(self.layer_blocks[-1], last)]
        for index in (1, 0):
            lateral = chain(self.inner_blocks[index], maps[index])
            last = lateral + self.grown(last, lateral.shape[1:3])
            results.insert(0, chain(self.layer_blocks[index], last))
        return dict(zip(x, results, strict=True))


class Pyramid(Model):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.body = [conv(filters, 3, 2) for filters in (8, 12, 16)]
        self.fpn = FeaturePyramid(12)

    def maps(self, x: Any) -> dict[str, Any]:
        found = {}
        for index, layer in enumerate(self.body):
            x = ops.relu(layer(x))
            found[str(index)] = x
        return found

    def call(self, x: Any) -> Any:
        return tuple(self.fpn(self.maps(x)).values())


def pyramid() -> Any:
    return built(Pyramid(), (1, 26, 36, 3))


class DoubleConv(Layer):
    def __init__(self, filters: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.conv1, self.bn1 = conv(filters, 3, bias=False), batch_norm()
        self.conv2, self.bn2 = conv(filters, 3, bias=False), batch_norm()

    def call(self, x: Any) -> Any:
        return ops.relu(self.bn2(self.conv2(ops.relu(self.bn1(self.conv1(x))))))


class UNet(Model):
    def __init__(self, up: str = "transposed", width: int = 6, head_bias: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.up = up
        self.down1, self.down2, self.bottom = DoubleConv(width), DoubleConv(2 * width), DoubleConv(4 * width)
        if up == "transposed":
            self.up2 = layers.Conv2DTranspose(2 * width, 2, strides=2)
            self.up1 = layers.Conv2DTranspose(width, 2, strides=2)
        else:
            self.up2, self.up1 = conv(2 * width, 1), conv(width, 1)
        self.merge2, self.merge1, self.head = DoubleConv(2 * width), DoubleConv(width), conv(5, 1, bias=head_bias)

    def resized(self, x: Any) -> Any:
        return interpolate(x, scale_factor=2, mode="bilinear", align_corners=self.up == "corners")

    def grown(self, layer: Any, x: Any) -> Any:
        return layer(x if self.up == "transposed" else self.resized(x))

    def joined(self, skip: Any, x: Any) -> Any:
        return ops.concatenate([skip, x], -1)

    def call(self, x: Any) -> Any:
        one = self.down1(x)
        two = self.down2(max_pool(one, 2, 2))
        x = self.bottom(max_pool(two, 2, 2))
        x = self.merge2(self.joined(two, self.grown(self.up2, x)))
        x = self.merge1(self.joined(one, self.grown(self.up1, x)))
        return self.head(x)


def unet(up: str = "transposed", width: int = 6, head_bias: bool = True) -> Any:
    return built(UNet(up, width, head_bias), (1, 16, 24, 3))


class PixelShuffle(Layer):
    """torch's order: the channels of one output channel lie together."""

    def call(self, x: Any) -> Any:
        n, height, width, channels = ops.shape(x)
        x = ops.reshape(x, (n, height, width, channels // 4, 2, 2))
        return ops.reshape(ops.transpose(x, (0, 1, 4, 2, 5, 3)), (n, 2 * height, 2 * width, channels // 4))


class Upscaler(Model):
    def __init__(self, width: int = 8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.entry, self.act = layers.Conv2D(width, 5), keras.layers.PReLU(shared_axes=[1, 2])
        self.conv1, self.norm1 = conv(width, 3), keras.layers.GroupNormalization(2, epsilon=1e-5)
        self.conv2, self.norm2 = conv(width, 3, groups=2), keras.layers.GroupNormalization(4, epsilon=1e-5)
        self.gamma = self.add_weight(name="gamma", shape=(width,), initializer="ones")
        self.expand, self.shuffle, self.last = conv(12, 3), PixelShuffle(), layers.Conv2D(3, 3)

    def reflected(self, x: Any, amount: int) -> Any:
        return pad(x, amount, mode="reflect")

    def between(self, x: Any) -> Any:
        return exact_gelu(x)

    def branch(self, x: Any) -> Any:
        return self.gamma * self.norm2(self.conv2(self.between(self.norm1(self.conv1(x)))))

    def call(self, x: Any) -> Any:
        x = self.act(self.entry(self.reflected(x, 2)))
        x = self.shuffle(self.expand(x + self.branch(x)))
        return ops.tanh(self.last(self.reflected(x, 1)))


def upscaler() -> Any:
    return built(Upscaler(), (1, 10, 12, 3))


class Generator(Model):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.project = dense(48)
        self.up1 = layers.Conv2DTranspose(12, 3, strides=2, padding=1, output_padding=1)
        self.bn1, self.bn2 = batch_norm(), batch_norm()
        self.up2 = layers.Conv2DTranspose(8, 4, strides=2, padding=1, use_bias=False)
        self.depthwise = layers.DepthwiseConv2D(3, depth_multiplier=2, padding=2, dilation_rate=2)
        self.grouped, self.last = conv(12, 3, groups=4), conv(3, 3)

    def image(self, x: Any) -> Any:
        """(N, C*H*W) in torch's order -> (N, H, W, C)."""
        return ops.transpose(ops.reshape(x, (-1, 8, 2, 3)), (0, 2, 3, 1))

    def clipped(self, x: Any) -> Any:
        return ops.relu6(3 * x)

    def leaky(self, x: Any) -> Any:
        return ops.leaky_relu(x, 0.2)

    def hard(self, x: Any) -> Any:
        return ops.hard_silu(x)

    def smooth(self, x: Any) -> Any:
        return ops.silu(x)

    def last_activation(self, x: Any) -> Any:
        return ops.sigmoid(x)

    def call(self, z: Any) -> Any:
        x = self.clipped(self.bn1(self.up1(self.image(self.project(z)))))
        x = self.leaky(self.bn2(self.up2(x)))
        x = self.smooth(self.grouped(self.hard(self.depthwise(x))))
        return self.last_activation(self.last(x))


def generator() -> Any:
    return built(Generator(), (1, 6))
