"""The trained judge: a variational autoencoder with a multinomial likelihood (Mult-VAE)."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdistill.checks import require_at_least, require_below_one, require_positive
from mmdistill.errors import NonFiniteError
from mmdistill.recsys.metrics import Scorer, Validation
from mmdistill.recsys.models import Fit, Recommender
from mmdistill.runtime import Draws

Rows = Callable[[Tensor], Tensor]
"""Maps indices of users to their ``(n, items)`` rows."""


@dataclass(frozen=True)
class VaeProtocol:
    """How Mult-VAE is built and trained.

    Args:
        hidden: units of the hidden layer of encoder and decoder.
        latent: dimensions of the code.
        dropout: share of a user's interactions that is hidden from the encoder.
        kl: final weight of the Kullback-Leibler term, reached by a linear rise over the first half of the steps.
        lr: Adam's learning rate.
        batch: users per step.
        steps: least number of updates.
        checks: number of validation checks, evenly spread over the steps, at which a network may be kept.
        epochs: least number of passes over the users: 800 updates on MovieLens-1M, more with more users.
    Raises:
        ConfigError: a size or number below 1, a rate that is not above 0, or dropout outside [0, 1).
    """

    hidden: int = 600
    latent: int = 200
    dropout: float = 0.5
    kl: float = 0.2
    lr: float = 1e-3
    batch: int = 250
    steps: int = 800
    checks: int = 16
    epochs: int = 32

    def __post_init__(self) -> None:
        sizes = ("hidden", "latent", "batch", "steps", "checks", "epochs")
        require_at_least(self, {**dict.fromkeys(sizes, 1), "kl": 0.0})
        require_positive(self, "lr")
        require_below_one(self, "dropout")

    def with_overrides(self, epochs: int | None, batch: int | None, users: int) -> "VaeProtocol":
        """Return the protocol with ``epochs`` passes over ``users`` users and a batch size; None keeps its own.

        On fewer users, training takes as many updates as these passes.
        """
        protocol = replace(self, batch=batch or self.batch)
        if epochs is None:
            return protocol
        return replace(protocol, steps=epochs * -(-users // protocol.batch), epochs=epochs)

    def updates(self, users: int) -> int:
        """Return the number of updates when training on ``users`` users."""
        return max(self.steps, self.epochs * -(-users // self.batch))

    def passes(self, users: int) -> int:
        """Return the number of passes when training on ``users`` users; the last may end early."""
        return -(-self.updates(users) // -(-users // self.batch))


class MultVae(nn.Module):
    r"""Rows to logits through a Gaussian code.

    .. math:: h = \tanh(W_1 \mathrm{drop}(x / \lVert x \rVert)), \quad z \sim N(\mu(h), \sigma(h)^2), \quad
        f = W_4 \tanh(W_3 z)

    Args:
        items: the number of items.
        protocol: sizes and dropout.

    Shapes:
        ``(n, items)`` rows to ``(n, items)`` logits; the rows may be weighted.

    Source: Liang et al., WWW 2018.
    """

    def __init__(self, items: int, protocol: VaeProtocol) -> None:
        super().__init__()
        self.dropout = protocol.dropout
        self.encoder = nn.Linear(items, protocol.hidden)
        self.code = nn.Linear(protocol.hidden, 2 * protocol.latent)
        self.decoder = nn.Sequential(nn.Linear(protocol.latent, protocol.hidden), nn.Tanh())
        self.output = nn.Linear(protocol.hidden, items)

    def encode(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the code's mean and log variance, ``(n, latent)`` each."""
        mean, log_variance = self.code(self.encoder(rows).tanh()).chunk(2, dim=1)
        return mean, log_variance

    def forward(self, rows: Tensor) -> Tensor:
        """Return the logits at the code's mean, which rankings use."""
        logits: Tensor = self.output(self.decoder(self.encode(F.normalize(rows))[0]))
        return logits

    def loss(self, rows: Tensor, kl: float, draws: Draws) -> Tensor:
        """Return the negative log-likelihood of whole rows, encoded after dropout, plus the weighted KL term."""
        is_kept = draws.fold("dropout").uniform(*rows.shape) >= self.dropout
        mean, log_variance = self.encode(F.normalize(rows) * is_kept / (1 - self.dropout))
        noise = draws.fold("code").normal(*mean.shape)
        logits = self.output(self.decoder(mean + noise * (0.5 * log_variance).exp()))
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        total: Tensor = (-(rows * logits.log_softmax(1)).sum(1) + kl * divergence).mean()
        return total


def initialise(network: MultVae, draws: Draws) -> MultVae:
    """Draw a network's parameters from its key: Xavier weights, and biases of standard deviation 0.001."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            key = draws.fold(name).to(parameter.device)
            scale = (2 / sum(parameter.shape)) ** 0.5 if parameter.ndim > 1 else 0.001
            parameter.copy_(scale * key.normal(*parameter.shape))
    return network


class TrainedAutoencoder(Recommender):
    """Mult-VAE as a recommender: it has no ridge, and validation data choose the check whose network is kept.

    Args:
        rows: returns the rows of users to train on.
        users: the number of users to train on.
        items: the number of items.
        protocol: how to train.
        draws: the key of everything random.
        device: where to train.
    """

    ridges = (0.0,)

    def __init__(
        self, rows: Rows, users: int, items: int, protocol: VaeProtocol, draws: Draws, device: torch.device
    ) -> None:
        self.rows, self.users, self.items = rows, users, items
        self.protocol, self.draws, self.device = protocol, draws, device

    def fit(self, ridge: float) -> Fit:
        """Train and return the scoring function of the last step."""
        scorer = self.fit_best(None)
        return lambda known, features: scorer(known)

    def fit_best(self, validation: Validation | None, others: tuple[float, ...] = ()) -> Scorer:
        """Train and return the scoring function of the best check, or of the last one without validation data.

        Raises:
            NonFiniteError: the loss diverges.
        """
        protocol, draws = self.protocol, self.draws
        network = initialise(MultVae(self.items, protocol).to(self.device), draws.fold("init"))
        optimizer = torch.optim.Adam(network.parameters(), lr=protocol.lr)
        steps = protocol.updates(self.users)
        every = -(-steps // protocol.checks)
        best, best_state = -1.0, network.state_dict()
        order, epoch = torch.empty(0, dtype=torch.long), 0

        def scorer(known: Tensor) -> Tensor:
            with torch.no_grad():
                logits: Tensor = network(known)
            return logits

        for step in range(1, steps + 1):
            if not len(order):
                order = draws.fold("order", epoch).to("cpu").permutation(self.users)
                epoch += 1
            chosen, order = order[: protocol.batch], order[protocol.batch :]
            kl = protocol.kl * min(1.0, 2 * step / steps)
            loss = network.loss(self.rows(chosen).to(self.device), kl, draws.fold("step", step).to(self.device))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if step % every == 0 or step == steps:
                if not bool(torch.isfinite(loss)):
                    value = float(loss.detach())
                    raise NonFiniteError(f"Mult-VAE's loss became {value} by step {step}; lower its rate")
                score = best if validation is None else validation(lambda known: [scorer(known)])[0]
                if validation is None or score > best:
                    best, best_state = score, {name: tensor.clone() for name, tensor in network.state_dict().items()}
        network.load_state_dict(best_state)
        return scorer
