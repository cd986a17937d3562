"""Attention matching, written with loops in float64 and numpy only, for a ConvNet of sigmoids with instance norm."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Params = dict[str, Array]


def convolved(image: Array, weight: Array, bias: Array) -> Array:
    """A 3 x 3 convolution of stride 1 with zeros around the image."""
    _, height, width = image.shape
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)))
    found = np.empty((len(weight), height, width))
    for k in range(len(weight)):
        for i in range(height):
            for j in range(width):
                found[k, i, j] = bias[k] + (weight[k] * padded[:, i : i + 3, j : j + 3]).sum()
    return found


def normalised(maps: Array, weight: Array, bias: Array) -> Array:
    """Each channel of one sample by its own mean and variance."""
    return np.stack(
        [w * (one - one.mean()) / np.sqrt(one.var() + 1e-5) + b for one, w, b in zip(maps, weight, bias, strict=True)]
    )


def pooled(maps: Array) -> Array:
    """Means over squares of two by two."""
    return (maps[:, ::2, ::2] + maps[:, 1::2, ::2] + maps[:, ::2, 1::2] + maps[:, 1::2, 1::2]) / 4


def layers(params: Params, image: Array, blocks: int) -> tuple[list[Array], Array]:
    """The maps of every block before they are pooled, and the embedding."""
    maps, x = [], image
    for block in range(1, blocks + 1):
        x = convolved(x, params[f"block{block}.0.weight"], params[f"block{block}.0.bias"])
        x = 1 / (1 + np.exp(-normalised(x, params[f"block{block}.1.weight"], params[f"block{block}.1.bias"])))
        maps.append(x)
        x = pooled(x)
    return maps, x.ravel()


def attention(maps: Array, power: float) -> Array:
    """Where a layer looks: the sum of all channels' powers at each place, as a vector of length 1."""
    total = np.zeros(maps.shape[1] * maps.shape[2])
    for channel in maps:
        total += np.abs(channel.ravel()) ** power
    length: float = np.sqrt((total * total).sum())
    return total / length


def attention_matching(
    params: Params, syn: list[Array], real: list[Array], blocks: int, power: float, balance: float
) -> float:
    """A hundred times what mean attentions of all layers but the last, and mean embeddings, differ by in squares.

    Each side is a list of the images of each class.
    """
    value = 0.0
    for syn_images, real_images in zip(syn, real, strict=True):
        sides = []
        for images in (syn_images, real_images):
            found = [layers(params, image, blocks) for image in images]
            means = [
                sum(attention(maps[layer], power) for maps, _ in found) / len(found) for layer in range(blocks - 1)
            ]
            sides.append((means, sum(embedding for _, embedding in found) / len(found)))
        (syn_means, syn_embedding), (real_means, real_embedding) = sides
        for one, other in zip(syn_means, real_means, strict=True):
            value += float(((one - other) ** 2).sum())
        value += balance * float(((syn_embedding - real_embedding) ** 2).sum())
    return 100 * value
