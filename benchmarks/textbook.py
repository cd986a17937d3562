"""Plain PyTorch steps of the methods, against which speed is measured: one class, network and inner step at a time.

They are written the way public implementations are, eager, from the papers' equations and torch's own layers, and use
nothing of this library. Fair to the loop: no needless copies, no synchronisation inside a step, cuDNN as torch sets it,
and on a CPU the same setting of the memory allocator, which is one for the process.
"""

import math
import random
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Make = Callable[[], nn.Module]


class ConvNet(nn.Module):
    """The field's network in torch's own layers, with parameters of the same names as this library's.

    Args:
        shape: channels, height, width of an image.
        classes: how many.
        width: channels of every block.
        depth: blocks.
        smooth: take the SiLU instead of the ReLU.
    """

    def __init__(
        self, shape: tuple[int, int, int], classes: int, width: int, depth: int = 3, smooth: bool = False
    ) -> None:
        super().__init__()
        channels, side, _ = shape
        self.depth = depth
        for block in range(depth):
            padding = 3 if block == 0 and shape == (1, 28, 28) else 1
            layers = (
                nn.Conv2d(channels, width, 3, padding=padding),
                nn.GroupNorm(width, width),
                nn.SiLU() if smooth else nn.ReLU(inplace=True),
                nn.AvgPool2d(2),
            )
            self.add_module(f"block{block + 1}", nn.Sequential(*layers))
            channels, side = width, (side + 2 * (padding - 1)) // 2
        self.classifier = nn.Linear(width * side * side, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        for block in range(self.depth):
            x = getattr(self, f"block{block + 1}")(x)
        found: Tensor = self.classifier(x.flatten(1))
        return found


def augmented(x: Tensor, seed: int) -> Tensor:
    """Return images under one random operation of DSA's, with parameters shared by the whole batch."""
    own = random.Random(seed)
    name = own.choice(("flip", "scale", "rotate", "crop", "cutout", "color"))
    n, _, h, w = x.shape
    if name == "flip":
        return x.flip(3) if own.random() < 0.5 else x
    if name in ("scale", "rotate"):
        if name == "scale":
            sx, sy = (own.uniform(1 / 1.2, 1.2) for _ in range(2))
            matrix = {(0, 0): sx, (1, 1): sy}
        else:
            angle = math.radians(own.uniform(-15, 15))
            cosine, sine = math.cos(angle), math.sin(angle)
            matrix = {(0, 0): cosine, (0, 1): -sine, (1, 0): sine, (1, 1): cosine}
        theta = torch.zeros(2, 3, device=x.device, dtype=x.dtype)
        for place, value in matrix.items():
            theta[place] = value
        grid = F.affine_grid(theta.expand(n, 2, 3), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)
    if name == "crop":
        pad = int(h * 0.125)
        dy, dx = (own.randint(0, 2 * pad) for _ in range(2))
        return F.pad(x, (pad,) * 4)[:, :, dy : dy + h, dx : dx + w]
    if name == "cutout":
        mask = torch.ones(1, 1, h, w, device=x.device, dtype=x.dtype)
        top, left = own.randint(0, h // 2), own.randint(0, w // 2)
        mask[..., top : top + h // 2, left : left + w // 2] = 0
        return x * mask
    x = x + own.uniform(-0.5, 0.5)
    mean = x.mean(1, keepdim=True)
    x = (x - mean) * own.uniform(0, 2) + mean
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * own.uniform(0.5, 1.5) + mean


class Problem:
    """Random images, their classes, and the synthetic images that the steps move.

    Args:
        images: ``(N, channels, height, width)``.
        labels: ``(N,)``.
        synthetic: ``(C ipc, ...)``, class by class.
        make: makes a fresh network on the device, whose last module ``classifier`` is linear.
        real_batch: real images per class and step, or in all for methods that read flat batches.
    """

    def __init__(self, images: Tensor, labels: Tensor, synthetic: Tensor, make: Make, real_batch: int) -> None:
        self.images, self.labels, self.make, self.real_batch = images, labels, make, real_batch
        self.classes = int(labels.max()) + 1
        self.synthetic = synthetic.clone().requires_grad_()
        self.ipc = len(synthetic) // self.classes
        self.targets = torch.arange(self.classes, device=images.device).repeat_interleave(self.ipc)
        self.members = [torch.nonzero(labels == c).flatten() for c in range(self.classes)]
        self.optimizer = torch.optim.SGD([self.synthetic], lr=0.0)
        self.seed = 0

    def real(self, c: int) -> Tensor:
        """Return random real images of a class."""
        own = self.members[c]
        return self.images[own[torch.randperm(len(own), device=own.device)[: self.real_batch]]]

    def flat(self) -> tuple[Tensor, Tensor]:
        """Return random real images of all classes."""
        index = torch.randperm(len(self.images), device=self.images.device)[: self.real_batch]
        return self.images[index], self.labels[index]

    def own(self, c: int) -> Tensor:
        """Return the synthetic images of a class."""
        return self.synthetic[c * self.ipc : (c + 1) * self.ipc]

    def stepped(self, loss: Tensor) -> Tensor:
        """Step the images on a loss and return their gradient."""
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        assert self.synthetic.grad is not None
        return self.synthetic.grad


def embedding(network: nn.Module, x: Tensor) -> Tensor:
    """Return a network's features before its linear layer."""
    kept: list[Tensor] = []
    handle = network.classifier.register_forward_pre_hook(lambda module, args: kept.append(args[0]))  # type: ignore[union-attr]
    network(x)
    handle.remove()
    return kept[0]


def dm(p: Problem, network: nn.Module | None = None, real: list[Tensor] | None = None) -> Tensor:
    """Distribution matching: one class at a time, a fresh network, siamese augmentation unless batches are given."""
    net = network or p.make()
    loss = torch.zeros((), device=p.images.device, dtype=p.synthetic.dtype)
    for c in range(p.classes):
        x, s = (p.real(c) if real is None else real[c]), p.own(c)
        if real is None:
            p.seed += 1
            x, s = augmented(x, p.seed), augmented(s, p.seed)
        with torch.no_grad():
            goal = embedding(net, x).mean(0)
        loss = loss + (embedding(net, s).mean(0) - goal).square().sum()
    return p.stepped(loss)


def layer_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the sum over output rows of one minus the cosine."""
    a, b = a.flatten(1), b.flatten(1)
    return (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)).sum()


def dc(p: Problem, network: nn.Module | None = None, real: list[Tensor] | None = None, siamese: bool = False) -> Tensor:
    """Gradient matching: both gradients of one class at a time, a fresh network."""
    net = network or p.make()
    parameters = list(net.parameters())
    loss = torch.zeros((), device=p.images.device, dtype=p.synthetic.dtype)
    for c in range(p.classes):
        x, s = (p.real(c) if real is None else real[c]), p.own(c)
        if siamese:
            p.seed += 1
            x, s = augmented(x, p.seed), augmented(s, p.seed)
        y, t = (torch.full((len(z),), c, device=z.device) for z in (x, s))
        goal = torch.autograd.grad(F.cross_entropy(net(x), y), parameters)
        found = torch.autograd.grad(F.cross_entropy(net(s), t), parameters, create_graph=True)
        for g, f in zip(goal, found, strict=True):
            if g.ndim > 1:
                loss = loss + layer_distance(f, g.detach())
    return p.stepped(loss)


def unrolled(
    p: Problem,
    net: nn.Module,
    parameters: list[Tensor],
    orders: list[Tensor],
    lr: float,
    momentum: float,
    siamese: bool,
) -> list[Tensor]:
    """Return the parameters after training on the synthetic images, the whole graph kept."""
    names = [name for name, _ in net.named_parameters()]
    velocity = [torch.zeros_like(q) for q in parameters]
    for index in orders:
        x = p.synthetic[index]
        if siamese:
            p.seed += 1
            x = augmented(x, p.seed)
        state = dict(zip(names, parameters, strict=True))
        loss = F.cross_entropy(torch.func.functional_call(net, state, (x,)), p.targets[index])
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        velocity = [momentum * v + g for v, g in zip(velocity, gradients, strict=True)]
        parameters = [q - lr * v for q, v in zip(parameters, velocity, strict=True)]
    return parameters


def minibatches(p: Problem, steps: int, batch: int) -> list[Tensor]:
    """Return the indices of so many minibatches, in epochs of permutations."""
    found: list[Tensor] = []
    while len(found) < steps:
        found += list(torch.randperm(len(p.synthetic), device=p.images.device).split(batch))
    return found[:steps]


def mtt(
    p: Problem,
    steps: int,
    batch: int,
    lr: float,
    network: nn.Module | None = None,
    goal: nn.Module | None = None,
    orders: list[Tensor] | None = None,
) -> Tensor:
    """Trajectory matching: a student's end against an expert's, the graph of all steps kept."""
    net, target = network or p.make(), goal or p.make()
    start = [q.detach().requires_grad_() for q in net.parameters()]
    plain = orders is not None
    end = unrolled(p, net, start, orders or minibatches(p, steps, batch), lr, 0.0, siamese=not plain)
    ends = [q.detach() for q in target.parameters()]
    far = torch.stack([(a - b).square().sum() for a, b in zip(end, ends, strict=True)]).sum()
    return p.stepped(far / torch.stack([(a - b).square().sum() for a, b in zip(start, ends, strict=True)]).sum())


def dd(p: Problem, steps: int, lr: float, momentum: float, network: nn.Module | None = None) -> Tensor:
    """Performance matching: the real loss after unrolled training on the whole synthetic set."""
    net = network or p.make()
    start = [q.detach().requires_grad_() for q in net.parameters()]
    whole = torch.arange(len(p.synthetic), device=p.images.device)
    end = unrolled(p, net, start, [whole] * steps, lr, momentum, siamese=False)
    x, y = p.flat()
    names = [name for name, _ in net.named_parameters()]
    return p.stepped(F.cross_entropy(torch.func.functional_call(net, dict(zip(names, end, strict=True)), (x,)), y))


def ridge_loss(kss: Tensor, kts: Tensor, y: Tensor, labels: Tensor, classes: int, ridge: float) -> Tensor:
    """Return half the squared error of the ridge regression fitted on the synthetic side, per real image."""
    goal = F.one_hot(labels, classes).double() - 1 / classes
    own = F.one_hot(y, classes).double() - 1 / classes
    kss, kts = kss.double(), kts.double()
    eye = torch.eye(len(kss), dtype=kss.dtype, device=kss.device)
    solution = torch.linalg.solve_ex(kss + ridge * kss.trace() / len(kss) * eye, own).result
    return (0.5 * (kts @ solution - goal).square().sum(1)).mean()


def frepo(p: Problem, network: nn.Module | None = None) -> Tensor:
    """Ridge regression on a live network's features; then the network takes one Adam step on the synthetic images."""
    net = (network or p.make()).eval()
    x, y = p.flat()
    with torch.no_grad():
        real = embedding(net, x)
    own = embedding(net, p.synthetic)
    gradient = p.stepped(ridge_loss(own @ own.T, real @ own.T, p.targets, y, p.classes, 1e-6))
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-4)
    optimizer.zero_grad()
    loss = F.mse_loss(net(p.synthetic.detach()), F.one_hot(p.targets, p.classes).to(p.images) - 1 / p.classes)
    loss.backward()
    optimizer.step()
    return gradient


def relu_kernels(a: Tensor, b: Tensor, aa: Tensor, bb: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ReLU's dual activation and its derivative's, of covariances a.b with variances aa and bb."""
    norms = (aa[:, None] * bb[None]).sqrt()
    cosine = (a / norms).clamp(-1 + 1e-12, 1 - 1e-12)
    angle = cosine.acos()
    return (
        norms * (angle.sin() + (math.pi - angle) * cosine) / (2 * math.pi),
        (math.pi - angle) / (2 * math.pi),
    )


def kip(p: Problem) -> Tensor:
    """Ridge regression under the NTK of one hidden ReLU layer, in float64."""
    x, y = p.flat()
    x, s = x.flatten(1).double(), p.synthetic.flatten(1).double()

    def ntk(u: Tensor, v: Tensor) -> Tensor:
        first = 2.0 * (u @ v.T) / u.shape[1] + 0.01
        uu, vv = (2.0 * z.square().sum(1) / z.shape[1] + 0.01 for z in (u, v))
        dual, derivative = relu_kernels(first, first, uu, vv)
        return 2.0 * dual + 0.01 + 2.0 * derivative * first

    return p.stepped(ridge_loss(ntk(s, s), ntk(x, s), p.targets, y, p.classes, 1e-6))


def train(p: Problem, net: nn.Module, epochs: int, batch: int, momentum: float, decay: float, siamese: bool) -> None:
    """Train a network on the synthetic images, minibatch by minibatch."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=momentum, weight_decay=decay)
    for _epoch in range(epochs):
        for index in torch.randperm(len(p.synthetic), device=p.images.device).split(batch):
            x = p.synthetic.detach()[index]
            if siamese:
                x = augmented(x, random.randrange(2**31))
            optimizer.zero_grad()
            F.cross_entropy(net(x), p.targets[index]).backward()
            optimizer.step()


def dc_and_epochs(p: Problem, net: nn.Module, epochs: int) -> Tensor:
    """Gradient matching at a network that then trains on the images for some epochs, as it does between two steps."""
    loss = dc(p, net)
    train(p, net, epochs, 256, 0.0, 0.0, siamese=False)
    return loss


def evaluation(p: Problem, networks: int, epochs: int, batch: int, siamese: bool) -> list[nn.Module]:
    """Train networks one after the other on the synthetic images."""
    found = [p.make() for _ in range(networks)]
    for net in found:
        train(p, net, epochs, batch, 0.9, 5e-4, siamese)
    return found
