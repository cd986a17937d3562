"""Networks that read token vectors: a convolutional one, recurrent ones, and any transformer with a fresh head."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdistill.errors import ConfigError
from mmdistill.networks.module import FunctionalModule, ModuleFactory
from mmdistill.runtime import Draws
from mmdistill.task import NetworkState, Tensors
from mmdistill.text.encoder import TransformerEncoder
from mmdistill.text.vocabulary import Vocabulary

WINDOWS = (3, 4, 5)
WIDTHS = {"textcnn": 64, "bilstm": 64, "bigru": 64}
INPUT_SCALE = 0.4
"""Root mean square of the inputs of small networks, about that of published word vectors."""
HEAD_SD = 0.02


def scaled_vectors(inputs: Tensors) -> Tensor:
    """Return the scaled vectors ``(n, L, H)``, zero after each text's end."""
    return INPUT_SCALE * inputs["vectors"] * inputs["mask"][..., None].to(inputs["vectors"])


class TextCNN(nn.Module):
    """Convolutions of several windows over the tokens, the maximum over time, a linear head.

    Args:
        dim: numbers in a token's vector.
        num_classes: C.
        width: filters of each window.
        windows: tokens that a filter sees.
    Source: Kim, EMNLP 2014; without dropout.
    """

    def __init__(self, dim: int, num_classes: int, width: int = 64, windows: Sequence[int] = WINDOWS) -> None:
        super().__init__()
        self.windows = tuple(windows)
        self.convolutions = nn.ModuleList(nn.Conv1d(dim, width, k, padding=k // 2) for k in windows)
        self.head = nn.Linear(width * len(windows), num_classes)

    def forward(self, inputs: Tensors) -> Tensor:
        """Return ``(n, C)`` logits."""
        x = scaled_vectors(inputs).transpose(1, 2)
        pooled = [
            (convolution(x).relu() * _within(inputs["mask"], window)[:, None]).amax(2)
            for window, convolution in zip(self.windows, self.convolutions, strict=True)
        ]
        logits: Tensor = self.head(torch.cat(pooled, 1))
        return logits


def _within(mask: Tensor, window: int) -> Tensor:
    """Return which outputs of a convolution, padded by half its window, belong to the text and not to its padding.

    Shapes:
        ``(n, L)`` to ``(n, L)``, or to ``(n, L + 1)`` for an even window, which gives one more output.
    """
    return mask if window % 2 else F.pad(mask, (0, 1)) | F.pad(mask, (1, 0))


class Recurrent(nn.Module):
    """A bidirectional LSTM or GRU with the maximum over time and a linear head.

    Implemented here because torch's own layers lack a double backward pass on CUDA, forward-mode derivatives and
    batching rules. One loop runs both directions.

    Args:
        dim: numbers in a token's vector.
        num_classes: C.
        width: units of each direction.
        gates: 4 for the LSTM, 3 for the GRU.
    Source: Hochreiter and Schmidhuber, 1997; Cho et al., EMNLP 2014; pooling of Conneau et al., EMNLP 2017.
    """

    def __init__(self, dim: int, num_classes: int, width: int = 64, gates: int = 4) -> None:
        super().__init__()
        self.width = width
        self.gates = gates
        self.inputs = nn.ModuleList(nn.Linear(dim, gates * width) for _ in range(2))
        self.hidden = nn.ModuleList(nn.Linear(width, gates * width) for _ in range(2))
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, inputs: Tensors) -> Tensor:
        """Return ``(n, C)`` logits."""
        x, mask = scaled_vectors(inputs), inputs["mask"]
        steps = x.shape[1]
        forward_inputs, backward_inputs = (layer(x) for layer in self.inputs)
        gate_inputs = torch.stack([forward_inputs, backward_inputs.flip(1)])  # (2, n, L, gates x width)
        present = torch.stack([mask, mask.flip(1)])[..., None]
        layers = [cast(nn.Linear, layer) for layer in self.hidden]
        weight = torch.stack([layer.weight.T for layer in layers])
        bias = torch.stack([layer.bias for layer in layers])[:, None]
        h = gate_inputs.new_zeros(2, x.shape[0], self.width)
        c = h
        states = []
        cell = self._lstm if self.gates == 4 else self._gru
        for t in range(steps):
            new_h, new_c = cell(gate_inputs[:, :, t], h @ weight + bias, h, c)
            h, c = torch.where(present[:, :, t], new_h, h), torch.where(present[:, :, t], new_c, c)
            states.append(h)
        over_time = torch.stack(states, 2).masked_fill(~present, torch.finfo(x.dtype).min)
        logits: Tensor = self.head(over_time.amax(2).transpose(0, 1).flatten(1))
        return logits

    @staticmethod
    def _lstm(x: Tensor, recurrent: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i, f, g, o = (x + recurrent).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    @staticmethod
    def _gru(x: Tensor, recurrent: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        x_r, x_z, x_n = x.chunk(3, -1)
        h_r, h_z, h_n = recurrent.chunk(3, -1)
        z = (x_z + h_z).sigmoid()
        new = (x_n + (x_r + h_r).sigmoid() * h_n).tanh()
        return (1 - z) * new + z * h, c


class TransformerClassifier(nn.Module):
    """A transformer body on token vectors, then the normalised mean of its last hidden states and a linear head.

    Args:
        body: a transformers encoder; its embedding table is dropped, since its inputs are vectors.
        num_classes: C.
        vocabulary: the units of the vectors.
    """

    mean: Tensor

    def __init__(self, body: Any, num_classes: int, vocabulary: Vocabulary) -> None:
        super().__init__()
        body.set_input_embeddings(nn.Identity())
        self.body = body
        self.scale = vocabulary.scale
        self.register_buffer("mean", vocabulary.mean.clone())
        self.head = nn.Linear(vocabulary.dim, num_classes)

    def forward(self, inputs: Tensors) -> Tensor:
        """Return ``(n, C)`` logits."""
        hidden = self._run(inputs, attentions=False).last_hidden_state
        return self._classify(hidden, inputs["mask"])

    def with_attention(self, inputs: Tensors) -> tuple[Tensor, Tensor]:
        """Return logits, and the attention of the first token to all others, ``(n, layers, heads, L)``."""
        output = self._run(inputs, attentions=True)
        attention = torch.stack([layer[:, :, 0] for layer in output.attentions], 1)
        return self._classify(output.last_hidden_state, inputs["mask"]), attention

    def _run(self, inputs: Tensors, *, attentions: bool) -> Any:
        embeds = inputs["vectors"] * self.scale + self.mean
        # transformers uses an additive 4-D mask as it is, but inspects the values of a 2-D one, which vmap forbids.
        hidden = (~inputs["mask"])[:, None, None].to(embeds) * torch.finfo(embeds.dtype).min
        return self.body(
            inputs_embeds=embeds,
            attention_mask=hidden,
            output_attentions=attentions,
            return_dict=True,
        )

    def _classify(self, hidden: Tensor, mask: Tensor) -> Tensor:
        # The encoder's sentence point, scaled so that its numbers have variance 1.
        point = math.sqrt(hidden.shape[-1]) * F.normalize((hidden * mask[..., None]).sum(1), dim=1)
        logits: Tensor = self.head(point)
        return logits


class SequenceClassifier(nn.Module):
    """Any transformers sequence classifier, on token vectors instead of token numbers.

    Args:
        model: a model whose output has ``logits``.
        vocabulary: the units of the vectors.
    """

    mean: Tensor

    def __init__(self, model: Any, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.model = model
        self.scale = vocabulary.scale
        self.register_buffer("mean", vocabulary.mean.clone())

    def forward(self, inputs: Tensors) -> Tensor:
        """Return ``(n, C)`` logits."""
        embeds = inputs["vectors"] * self.scale + self.mean
        logits: Tensor = self.model(inputs_embeds=embeds, attention_mask=inputs["mask"].long()).logits
        return logits


class PretrainedModule(FunctionalModule):
    """A pre-trained body with a freshly drawn head for each network.

    Args:
        factory: loads body and head.
        head: prefix of the head's parameters: weights are normal with standard deviation 0.02, biases 0.
        features: as for :class:`FunctionalModule`.
        device: where parameters live.
    Raises:
        ConfigError: no parameter lies under ``head``.
    """

    def __init__(
        self,
        factory: ModuleFactory,
        head: str = "head",
        features: Sequence[str] = (),
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(factory, features, device)
        self.head = head
        if not any(name.startswith(f"{head}.") for name, _ in self.module.named_parameters()):
            raise ConfigError(f"no parameter of {type(self.module).__name__} lies under {head!r}, the head to draw")

    def init(self, draws: Draws) -> NetworkState:
        """Return the pre-trained body with a fresh head."""
        key = draws.to(self.device)
        params = {}
        for name, parameter in self.module.named_parameters():
            if not name.startswith(f"{self.head}."):
                params[name] = parameter.detach().clone()
            elif parameter.ndim > 1:
                params[name] = HEAD_SD * key.fold(name).normal(*parameter.shape)
            else:
                params[name] = torch.zeros_like(parameter)
        return NetworkState(params, {name: b.detach().clone() for name, b in self.module.named_buffers()})


def _transformer(encoder: TransformerEncoder, vocabulary: Vocabulary, num_classes: int) -> nn.Module:
    # Fused attention has no second derivatives, which gradient matching and unrolled training need.
    body = encoder.load_body(attn_implementation="eager")
    for module in body.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return TransformerClassifier(body, num_classes, vocabulary)


def named_module(
    name: str,
    vocabulary: Vocabulary,
    num_classes: int,
    *,
    encoder: TransformerEncoder,
    width: int | None = None,
    device: torch.device | str = "cpu",
) -> FunctionalModule:
    """Build a network by name.

    Args:
        name: ``textcnn``, ``bilstm``, ``bigru`` or ``transformer`` (the encoder's own body, without dropout).
        vocabulary: the space of the vectors.
        num_classes: C.
        encoder: the encoder whose body ``transformer`` uses.
        width: filters of each window, or units of each direction; 64 by default. ``transformer`` ignores it.
        device: where it runs.
    """
    if name == "transformer":
        return PretrainedModule(partial(_transformer, encoder, vocabulary, num_classes), device=device)
    width = width or WIDTHS[name]
    dim = vocabulary.dim
    factories: dict[str, Callable[[], nn.Module]] = {
        "textcnn": partial(TextCNN, dim, num_classes, width),
        "bilstm": partial(Recurrent, dim, num_classes, width, 4),
        "bigru": partial(Recurrent, dim, num_classes, width, 3),
    }
    return FunctionalModule(factories[name], device=device)
