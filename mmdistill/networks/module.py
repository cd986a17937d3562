"""Any ``nn.Module`` as a functional network: parameters and buffers outside, features from named submodules."""

import math
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from inspect import isfunction
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mmdistill.abilities import EveryLayer, MapReader
from mmdistill.errors import ConfigError, MmdistillWarning, UnsupportedError
from mmdistill.networks.hooks import keep_input, keep_map, keep_output, last_block, last_pooling
from mmdistill.runtime import Draws, global_draws_from, host_draws_from
from mmdistill.task import NetworkState, Tensors

ModuleFactory = Callable[[], nn.Module]
"""Makes a freshly initialised network."""
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d)
DROPOUTS = frozenset(name for name in vars(nn.functional) if "dropout" in name)
DRAWING = DROPOUTS | {"bernoulli", "bernoulli_", "rand", "rand_like", "randn", "randn_like"}
"""Names of functions that read the global generator."""
NORMS = (nn.GroupNorm, nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm2d)


def made_by(factory: ModuleFactory) -> nn.Module:
    """Return a module that a factory makes.

    Raises:
        ConfigError: the factory is no function, or makes no module, or one with frozen parameters, unknown shapes or no
            parameters.
    """
    if isinstance(factory, nn.Module):
        raise ConfigError(
            f"model is a function that makes a fresh network each time it is called, such as "
            f"lambda: {type(factory).__name__}(...), and not one network"
        )
    if not callable(factory):
        raise ConfigError(
            f"model is the name of a network or a function that makes one, got {factory!r:.80}, which is "
            f"{type(factory).__name__}"
        )
    module = factory()
    if not isinstance(module, nn.Module):
        raise ConfigError(f"the function given as model must return an nn.Module, and returned {module!r:.80}")
    if next(module.parameters(), None) is None:
        raise ConfigError(
            "the network has no parameters that torch knows of; layers in a plain list are none, keep them in an "
            "nn.ModuleList"
        )
    frozen = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
    if frozen:
        raise ConfigError(
            f"parameter {frozen[0]!r} of the network is frozen, and networks are trained whole; let it learn, or make "
            "it a buffer (register_buffer), which stays as it is"
        )
    if any(is_lazy(parameter) for parameter in module.parameters()):
        raise ConfigError(
            "the network has lazy layers, whose shapes are not known yet; run it once on a dummy input in the function "
            "that makes it, or give the layers their sizes"
        )
    return module


def _require_fresh(factory: ModuleFactory, module: nn.Module) -> None:
    """Call a factory again, by another key than before: networks shall be independent of one another.

    Raises:
        ConfigError: it returns the module that it returned before.
    """
    with host_draws_from(Draws(1, ("again",)).integer()):
        other = made_by(factory)
    if other is module:
        name = type(module).__name__
        raise ConfigError(
            "the function given as model returned one and the same network twice, and each network starts from "
            f"weights of its own; let it make a new one each time, such as lambda: {name}(...) or the class itself"
        )
    again = dict(other.named_parameters())
    own = dict(module.named_parameters())
    if own.keys() == again.keys() and all(torch.equal(own[name].cpu(), again[name].cpu()) for name in own):
        warnings.warn(
            "all networks begin alike: the function given as model returned equal weights twice, as of a copy, of a "
            "seed that it sets or of pretrained weights; several networks then differ by what training draws alone",
            MmdistillWarning,
            stacklevel=3,
        )


def redrawn(state: NetworkState, draws: Draws, bias_std: float) -> NetworkState:
    """Return a network with weights from N(0, 2 / fan-in) and biases from N(0, bias_std^2); other vectors stay."""
    params = {}
    for name, parameter in state.params.items():
        key = draws.fold(name).to(parameter.device)
        if parameter.ndim > 1:
            params[name] = (2 / parameter[0].numel()) ** 0.5 * key.normal(*parameter.shape, dtype=parameter.dtype)
        elif name.endswith("bias"):
            params[name] = bias_std * key.normal(*parameter.shape, dtype=parameter.dtype)
        else:
            params[name] = parameter
    return NetworkState(params, state.buffers)


class FunctionalModule:
    """Run a module made by a factory with parameters passed in.

    Args:
        factory: makes a freshly initialised module; called once here for the structure, and for modules that hold
            layers other than the common ones a second time, to be sure that it makes another, and once per draw.
        features: name or names of the submodules whose *input* (the last name) or output (all others) are the layers'
            features; by default the input of the last ``nn.Linear`` that runs.
        device: where parameters live.
    Raises:
        ConfigError: a module that cannot be trained whole, one and the same each time, or ``features`` that are none of
            its submodules.

    Attributes:
        losses: that judges train it by, by the scale of their targets, the number formats and a teacher's temperature.
    """

    def __init__(
        self, factory: ModuleFactory, features: str | Sequence[str] = (), device: torch.device | str = "cpu"
    ) -> None:
        self.factory = factory
        self.device = torch.device(device)
        with torch.random.fork_rng(devices=[]), noted_starts() as starts:
            module = made_by(factory)
        self._plain = _starts_as_layers_do(module, starts)
        if not self._plain:
            _require_fresh(factory, module)
        self.module = module.to(self.device)
        submodules = dict(self.module.named_modules())
        self.random = any(_may_draw(module) for module in submodules.values())
        linear = [name for name, module in submodules.items() if isinstance(module, nn.Linear)]
        if not isinstance(features, str | Sequence):
            raise ConfigError(f"features is the name of a submodule, or a list of such, got {features!r}")
        self.feature_names = ((features,) if isinstance(features, str) else tuple(features)) or tuple(linear[-1:])
        missing = [name for name in self.feature_names if name not in submodules]
        if missing:
            raise ConfigError(f"no submodule named {missing[0]!r}; there are {sorted(n for n in submodules if n)}")
        self.losses: dict[tuple[float | None, str, float | None], Any] = {}
        self._captured: Tensors = {}
        self._maps: Tensors = {}
        self._readers: dict[str, MapReader] = {}
        self._pools_alike: set[str] = set()
        self._last_block = last_block(self.module, self.feature_names)
        for name in self.feature_names[-1:] if features else linear:  # under one name, so that the last to run counts
            submodules[name].register_forward_pre_hook(partial(keep_input, self._captured, self.feature_names[-1]))
        for name in dict.fromkeys((*self.feature_names[:-1], *filter(None, [self._last_block]))):
            self._keep(name, submodules[name])
        for submodule in submodules.values():
            if isinstance(submodule, (nn.modules.batchnorm._NormBase, nn.LayerNorm)):
                submodule.register_forward_pre_hook(_in_full)

    def _keep(self, name: str, submodule: nn.Module) -> None:
        """Have a submodule's output kept, and what a reader makes of its map before the pooling that it ends with."""
        pooling, keep = last_pooling(submodule), partial(keep_map, self._maps, self._readers, name)
        if pooling is None:
            submodule.register_forward_hook(keep)
        else:
            pooling.register_forward_pre_hook(keep)
            everywhere = [part for _, part in self.module.named_modules(remove_duplicate=False)]
            if sum(part is pooling for part in everywhere) > 1:
                self._pools_alike.add(name)
        submodule.register_forward_hook(partial(keep_output, self._captured, name))

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy starts with: the judges' losses, which run this very network, stay here."""
        return {**self.__dict__, "losses": {}}

    def init(self, draws: Draws) -> NetworkState:
        """Draw fresh parameters as the module's own constructor distributes them.

        Common layers (linear, convolutions, norms) are drawn directly on the device; a module that holds parameters of
        any other layer, or whose constructor sets some itself, is rebuilt by its factory, which draws from the key.
        """
        if self._plain:
            buffers = {name: b.detach().clone() for name, b in self.module.named_buffers()}
            return NetworkState(self._direct_init(draws.to(self.device)), buffers)
        with host_draws_from(draws.integer()):
            module = self.factory().to(self.device)
        params = {name: p.detach().clone() for name, p in module.named_parameters()}
        return NetworkState(params, {name: b.detach().clone() for name, b in module.named_buffers()})

    def _direct_init(self, draws: Draws) -> Tensors:
        """Return torch's default initialisation of common layers, drawn from one generator."""
        generator = draws.generator()
        params: Tensors = {}
        for prefix, module in self.module.named_modules():
            own = dict(module.named_parameters(recurse=False))
            if not own:
                continue
            name = f"{prefix}." if prefix else ""
            if isinstance(module, WEIGHTED):
                weight = own["weight"]
                bound = 1 / math.sqrt(weight[0].numel())
                for key, parameter in own.items():
                    drawn = torch.rand(parameter.shape, generator=generator, device=self.device).to(parameter.dtype)
                    params[name + key] = (2 * drawn - 1) * bound
            else:
                for key, parameter in own.items():
                    params[name + key] = (
                        torch.ones_like(parameter) if key == "weight" else torch.zeros_like(parameter)
                    ).detach()
        order = [name for name, _ in self.module.named_parameters()]
        return {name: params[name] for name in order}

    def drawn(self, draws: Draws | None) -> AbstractContextManager[object]:
        """Return a context in which dropout draws its masks from a key; without dropout or a key, one of nothing."""
        if draws is None or not self.random:
            return nullcontext()
        return global_draws_from(draws.fold("dropout").integer(), self.device)

    def __call__(
        self, state: NetworkState, *inputs: Any, train: bool = False, draws: Draws | None = None
    ) -> tuple[Any, Tensors]:
        """Return the module's output and its buffers after the call; in training, the state's own are moved too.

        Layers that write into their buffers do that anyway, and a loss returns nothing else: pass copies. Dropout in
        training follows the key, where one is given.
        """
        if self.module.training != train or torch.compiler.is_compiling():  # programs shall serve both states
            self.module.train(train)
        tensors = {**state.params, **state.buffers}  # a layer that replaces a buffer finds its new one put here
        with self.drawn(draws if train else None):
            output, _ = self._run(tensors, inputs)
        buffers = {name: tensors[name] for name in state.buffers}
        if train:
            state.buffers.update(buffers)
        return output, buffers

    def _run(self, tensors: Tensors, inputs: tuple[Any, ...]) -> tuple[Any, Tensors]:
        """Return the module's output and what its hooks have kept of submodules, of which nothing stays here."""
        self.forget()  # what a call that failed has left
        output = torch.func.functional_call(self.module, tensors, inputs)
        found = dict(self._captured)
        self.forget()
        return output, found

    def forget(self) -> None:
        """Let go of what submodules were given last, after a call of the module in another one."""
        self._captured.clear()

    @torch.no_grad()
    def settled(self, state: NetworkState, *inputs: Any) -> NetworkState:
        """Return the network with the inputs' own statistics as the running statistics of its batch norms."""
        norms = [m for m in self.module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if not norms:
            return state
        self.module.eval()
        kept = [norm.momentum for norm in norms]
        tensors = {**state.params, **{name: tensor.clone() for name, tensor in state.buffers.items()}}
        try:
            for norm in norms:
                norm.train()
                norm.momentum = 1.0
            self._run(tensors, inputs)
        finally:
            for norm, momentum in zip(norms, kept, strict=True):
                norm.eval()  # like the module, by whose mode a call knows that of its parts
                norm.momentum = momentum
        return NetworkState(state.params, {name: tensors[name] for name in state.buffers})

    def features(self, state: NetworkState, *inputs: Any) -> tuple[Tensor, ...]:
        """Return the named submodules' features, each flattened to ``(n, d)``, in eval mode.

        Raises:
            UnsupportedError: no submodule is named and there is no ``nn.Linear``, or a named one did not run.
        """
        if not self.feature_names:
            raise UnsupportedError(
                f"{type(self.module).__name__} has no nn.Linear whose input could be its features; name a submodule "
                f"with features=[...] out of {sorted(name for name, _ in self.module.named_modules() if name)}"
            )
        self.module.eval()
        _, found = self._run({**state.params, **state.buffers}, inputs)
        missing = [name for name in self.feature_names if name not in found]
        if missing:
            raise UnsupportedError(
                f"submodule {missing[0]!r} did not run in the forward pass, so it has no features; name another one "
                "with features=[...]"
            )
        return tuple(found[name].flatten(1) for name in self.feature_names)

    def maps(self, state: NetworkState, read: MapReader, *inputs: Any) -> tuple[Tensor, ...]:
        """Return what a reader makes of the features' maps, each before it is pooled, and the embedding last.

        Maps are features of four dimensions; where the last layer of a feature's submodule is a pooling, they are what
        that is given. A map is read as soon as it is there, so that without gradients no more than one is kept, but
        for an :class:`~mmdistill.abilities.EveryLayer`, which keeps all. The block that this one is given beside them
        is the module's ``last_block``, whose pooled maps are the embedding.

        Shapes:
            maps ``(n, channels, height, width)``; what ``read`` returns of one is ``(n, d)``.
        Raises:
            UnsupportedError: as :meth:`features`, or a pooling that several layers share.
        """
        every = isinstance(read, EveryLayer)
        if self._pools_alike if every else self._pools_alike.intersection(self.feature_names):
            raise UnsupportedError(
                "layers end in one and the same pooling module, so their maps cannot be told apart; give each its own"
            )
        self._readers.update(dict.fromkeys((*self.feature_names[:-1], *[self._last_block] * every), read))
        try:
            *layers, embedding = self.features(state, *inputs)
            if not every:
                return (*(self._maps[name] for name in self.feature_names[:-1] if name in self._maps), embedding)
            given = {name: self._maps.get(name, layer) for name, layer in zip(self.feature_names, layers, strict=False)}
            last = self._maps.get(self._last_block)
            if last is None:
                return (*given.values(), embedding)
            given[self._last_block] = last
            return (*given.values(), *[embedding] * (last.shape != embedding.shape), embedding)
        finally:
            self._readers.clear()
            self._maps.clear()


def _in_full(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Give a norm inputs in float32: torch's batched norms cannot join bfloat16 and their own parameters."""
    return (args[0].float(), *args[1:]) if isinstance(args[0], Tensor) and args[0].dtype == torch.bfloat16 else None


_noting = threading.RLock()
"""Held while classes of torch are patched, which all threads share."""


@contextmanager
def noted_starts() -> Iterator[dict[nn.Module, Tensors]]:
    """Give the parameters of each common layer that is made meanwhile, as its own initialisation leaves them."""
    starts: dict[nn.Module, Tensors] = {}

    def noting(reset: Callable[[nn.Module], None]) -> Callable[[nn.Module], None]:
        def noted(module: nn.Module) -> None:
            reset(module)
            starts[module] = {name: p.detach().clone() for name, p in module.named_parameters(recurse=False)}

        return noted

    with _noting:
        owners = {
            next(base for base in kind.__mro__ if "reset_parameters" in vars(base)) for kind in (*WEIGHTED, *NORMS)
        }
        resets: dict[Any, Callable[[nn.Module], None]] = {owner: vars(owner)["reset_parameters"] for owner in owners}
        for owner, reset in resets.items():
            owner.reset_parameters = noting(reset)
        try:
            yield starts
        finally:
            for owner, reset in resets.items():
                owner.reset_parameters = reset


def _starts_as_layers_do(module: nn.Module, starts: dict[nn.Module, Tensors]) -> bool:
    """Whether all parameters of a module are those of common layers, as these initialised them."""
    for part in module.modules():
        own = dict(part.named_parameters(recurse=False))
        if own and not isinstance(part, WEIGHTED + NORMS):
            return False
        start = starts.get(part, {})
        if own.keys() != start.keys() or not all(torch.equal(own[name], start[name]) for name in own):
            return False
    return True


def _may_draw(module: nn.Module) -> bool:
    """Whether a module may draw random numbers when it runs, as dropout does.

    A user's class may call ``F.dropout`` and the like, so the names that its methods use are looked through.
    """
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return True
    rate = getattr(module, "dropout", None)
    if isinstance(rate, (int, float)):  # recurrent and attention layers, those of torch-geometric too
        return rate > 0
    if type(module).__module__.startswith("torch.nn."):
        return False
    own = (kind for kind in type(module).__mro__ if issubclass(kind, nn.Module) and kind is not nn.Module)
    functions = (function for kind in own for function in vars(kind).values() if isfunction(function))
    return any(
        not DRAWING.isdisjoint(function.__code__.co_names) for function in functions if function.__name__ != "__init__"
    )
