"""A small vision transformer, a modern judge."""

import math

import torch
from torch import Tensor, nn

from mmdistill.errors import ConfigError
from mmdistill.image.models.layers import ImageShape

HEADS = 4


def patch_size(side: int) -> int:
    """Return the patch size that gives 16 to 144 tokens: 2 pixels below 16, 4 up to 48, 8 up to 96, else 16."""
    return 2 if side < 16 else 4 if side <= 48 else 8 if side <= 96 else 16


def positions(rows: int, columns: int, width: int) -> Tensor:
    """Return sines and cosines of each token's row and column at width / 4 frequencies, ``(rows * columns, width)``."""
    rates = 10_000 ** -(torch.arange(width // 4) / max(width // 4 - 1, 1))
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [position.flatten()[:, None] * rates for position in (row, column)]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], 1)


class Attention(nn.Module):
    """Multi-head self-attention in plain operations, which can be differentiated twice and batched over networks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the attended tokens, ``(n, tokens, width)``."""
        query, key, value = self.query_key_value(tokens).unflatten(-1, (3, HEADS, -1)).movedim(-3, 0).transpose(-3, -2)
        weights = (query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])).softmax(-1)
        attended: Tensor = self.out((weights @ value).transpose(-3, -2).flatten(-2))
        return attended


class TransformerBlock(nn.Module):
    """Self-attention and a two-layer MLP, each with a layer norm before it and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the tokens after the block."""
        tokens = tokens + self.attention(self.norm1(tokens))
        result: Tensor = tokens + self.mlp(self.norm2(tokens))
        return result


class ViT(nn.Module):
    """A plain vision transformer: patches, fixed sine-cosine positions, pre-norm blocks, mean of the tokens.

    Args:
        shape: channels, height, width of an image, at least 8 x 8; both sides multiples of :func:`patch_size`.
        num_classes: C.
        width: of a token, a multiple of 4.
        depth: blocks.

    Raises:
        ConfigError: a width that is not a multiple of 4, or a depth below one.

    Source: Beyer, Zhai and Kolesnikov, 2022 ("Better plain ViT baselines"), made small.
    """

    def __init__(self, shape: ImageShape, num_classes: int, width: int = 128, depth: int = 4) -> None:
        super().__init__()
        channels, height, breadth = shape
        patch = patch_size(min(height, breadth))
        if width < 4 or width % 4 or depth < 1:
            raise ConfigError(
                f"a ViT needs a width that is a multiple of 4 and a depth of at least 1, got {width} and {depth}"
            )
        self.depth = depth
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.positions: Tensor
        self.register_buffer("positions", positions(height // patch, breadth // patch, width))
        for block in range(1, depth + 1):
            self.add_module(f"block{block}", TransformerBlock(width))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, num_classes)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The submodules with one feature tensor per block; the embedding is the last one's input."""
        return (*(f"block{block}" for block in range(1, self.depth)), "classifier")

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        for block in range(1, self.depth + 1):
            tokens = self.get_submodule(f"block{block}")(tokens)
        logits: Tensor = self.classifier(self.norm(tokens).mean(1))
        return logits
