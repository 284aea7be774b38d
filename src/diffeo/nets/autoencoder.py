"""The two halves of an autoencoder of images: small convolutional networks that halve and double the sides."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from diffeo.arguments import KnowsArguments
from diffeo.nets.activations import as_widths, get_activation

__all__ = ["Decoder", "Encoder"]


def _sides(side: int, halvings: int) -> list[int]:
    """A side and what is left of it after each halving, rounded up."""
    sides = [side]
    for _ in range(halvings):
        sides.append(-(-sides[-1] // 2))
    return sides


class Encoder(KnowsArguments, nn.Module):
    """Images ``(n, C, H, W)`` -> features ``(n, outputs)``: convolutions of stride 2, then a dense layer.

    Args:
        shape: (C, H, W) of an image.
        outputs: how many features.
        channels: of each convolution; each halves the sides, rounded up.
        activation: a name in ``ACTIVATIONS``, behind every layer, the last one, too.

    Raises:
        ValueError: for sizes that are not positive, no convolution, or an unknown activation.
    """

    def __init__(
        self, shape: Sequence[int], outputs: int = 256, channels: Sequence[int] = (16, 32), activation: str = "silu"
    ) -> None:
        super().__init__()
        channels = as_widths(channels, "channels")
        if not channels or min(*shape, outputs, *channels) < 1:
            raise ValueError(f"expected positive sizes, got shape={tuple(shape)}, {outputs} outputs, {channels}")
        self.activation = get_activation(activation)
        widths = [shape[0], *channels]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in zip(widths, channels, strict=False)
        )
        height, width = (_sides(side, len(channels))[-1] for side in shape[1:])
        self.dense = nn.Linear(channels[-1] * height * width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the network.

        Args:
            x: ``(n, C, H, W)``.

        Returns:
            ``(n, outputs)``.
        """
        for convolution in self.convolutions:
            x = self.activation(convolution(x))
        features: Tensor = self.activation(self.dense(x.flatten(1)))
        return features


class Decoder(KnowsArguments, nn.Module):
    """Latents ``(n, inputs)`` -> ``(n, size * C, H, W)``: two dense layers, then transposed convolutions of stride 2.

    Args:
        inputs: how many latents.
        shape: (C, H, W) of an image.
        size: numbers for each element of the image.
        width: of the first dense layer.
        channels: as of the ``Encoder``, whose sides are retraced.
        activation: a name in ``ACTIVATIONS``.

    Raises:
        ValueError: for sizes that are not positive, no convolution, or an unknown activation.
    """

    def __init__(
        self,
        inputs: int,
        shape: Sequence[int],
        size: int = 1,
        width: int = 256,
        channels: Sequence[int] = (16, 32),
        activation: str = "silu",
    ) -> None:
        super().__init__()
        channels = as_widths(channels, "channels")
        if not channels or min(inputs, *shape, size, width, *channels) < 1:
            raise ValueError(f"expected positive sizes, got {inputs} inputs, shape={tuple(shape)}, {size}, {channels}")
        self.activation = get_activation(activation)
        self.sides = list(zip(*(_sides(side, len(channels))[::-1] for side in shape[1:]), strict=True))
        height, across = self.sides[0]
        self.dense = nn.Sequential(nn.Linear(inputs, width), nn.Linear(width, channels[-1] * height * across))
        widths = [*channels[::-1], size * shape[0]]
        self.convolutions = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 4, stride=2, padding=1) for a, b in zip(widths, widths[1:], strict=False)
        )

    def forward(self, z: Tensor) -> Tensor:
        """Apply the network.

        Args:
            z: ``(n, inputs)``.

        Returns:
            ``(n, size * C, H, W)``.
        """
        for layer in self.dense:
            z = self.activation(layer(z))
        x: Tensor = z.unflatten(1, (-1, *self.sides[0]))
        for convolution, (height, width) in zip(self.convolutions, self.sides[1:], strict=True):
            x = convolution(x)[:, :, :height, :width]  # an odd side is one less than twice its half
            x = x if convolution is self.convolutions[-1] else self.activation(x)
        return x
