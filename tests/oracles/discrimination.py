"""CAFE's objective, written with loops in float64 and numpy only, for a ConvNet of sigmoids with instance norm."""

import numpy as np

from tests.oracles.attention import Array, Params, layers

WEIGHTS = (0.1, 0.1, 1.0)
"""Of the maps of three blocks."""


def discriminative_matching(params: Params, syn: list[Array], real: list[Array], balance: float) -> float:
    """The weighted squared gaps of class means, and the cross entropy of real embeddings by synthetic centres.

    Each side is a list of the images of each class. The pooled maps of the last block are a layer, and the embedding.
    """
    value, centres = 0.0, []
    embeddings: list[list[Array]] = []
    for syn_images, real_images in zip(syn, real, strict=True):
        sides = [[layers(params, image, len(WEIGHTS)) for image in images] for images in (syn_images, real_images)]
        for block, weight in enumerate(WEIGHTS):
            one, other = (sum(maps[block] for maps, _ in side) / len(side) for side in sides)
            value += weight * float(((one - other) ** 2).sum())
        one, other = (sum(embedding for _, embedding in side) / len(side) for side in sides)
        value += 2 * float(((one - other) ** 2).sum())
        centres.append(one)
        embeddings.append([embedding for _, embedding in sides[1]])
    for label, found in enumerate(embeddings):
        for embedding in found:
            scores = np.array([float((embedding * centre).sum()) for centre in centres])
            value -= balance * float(scores[label] - np.log(np.exp(scores).sum()))
    return value
