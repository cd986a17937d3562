"""Any ``nn.Module`` as a functional network: parameters and buffers passed in, features of named submodules out."""

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
    """Call a factory and return its module.

    Raises:
        ConfigError: the factory is no function, or returns no module, or one with frozen parameters, lazy layers or no
            parameters.
    """
    if isinstance(factory, nn.Module):
        raise ConfigError(
            "give a function that makes a fresh network each time it is called, such as "
            f"lambda: {type(factory).__name__}(...), and not one network"
        )
    if not callable(factory):
        raise ConfigError(
            f"a network is given by its name or as a function that makes one, got {factory!r:.80}, which is "
            f"{type(factory).__name__}"
        )
    module = factory()
    if not isinstance(module, nn.Module):
        raise ConfigError(f"the function that makes the network must return an nn.Module, and returned {module!r:.80}")
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
    """Call a factory again with another key and refuse it if it returns the same module; warn if weights are equal.

    Raises:
        ConfigError: the factory returned the same module.
    """
    with host_draws_from(Draws(1, ("again",)).integer()):
        other = made_by(factory)
    if other is module:
        name = type(module).__name__
        raise ConfigError(
            "the function that makes the network returned one and the same network twice, and each network starts from "
            f"weights of its own; let it make a new one each time, such as lambda: {name}(...) or the class itself"
        )
    first = dict(module.named_parameters())
    second = dict(other.named_parameters())
    if first.keys() == second.keys() and all(torch.equal(first[name].cpu(), second[name].cpu()) for name in first):
        warnings.warn(
            "all networks begin alike: the function that makes them returned equal weights twice, as of a copy, of a "
            "seed that it sets or of pretrained weights; several networks then differ by what training draws alone",
            MmdistillWarning,
            stacklevel=3,
        )


def redrawn(state: NetworkState, draws: Draws, bias_std: float) -> NetworkState:
    """Redraw a network's weights from N(0, 2 / fan-in) and its biases from N(0, bias_std^2); other vectors stay."""
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
        factory: makes a freshly initialised module; called once here for the structure. For modules with layers other
            than the common ones it is called a second time, to check that it makes another module, and once per draw.
        features: name or names of the submodules whose *input* (the last name) or output (all others) are the layers'
            features; by default the input of the last ``nn.Linear`` that runs.
        device: where parameters live.
    Raises:
        ConfigError: a module that cannot be trained as a whole, the same module at each call, or unknown ``features``.

    Attributes:
        losses: cache of the losses that judges train it with, by the scale of their targets, the number formats and a
            teacher's temperature.
    """

    def __init__(
        self, factory: ModuleFactory, features: str | Sequence[str] = (), device: torch.device | str = "cpu"
    ) -> None:
        self.factory = factory
        self.device = torch.device(device)
        with host_draws_from(0), record_initial_values() as initial_values:
            module = made_by(factory)
        self._has_default_init = _has_default_init(module, initial_values)
        if not self._has_default_init:
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
        self._shared_poolings: set[str] = set()
        """Names of features whose pooling module other layers use too."""
        self._last_block = last_block(self.module, self.feature_names)
        # All linear layers write to one name, so that the last one to run counts.
        for name in self.feature_names[-1:] if features else linear:
            submodules[name].register_forward_pre_hook(partial(keep_input, self._captured, self.feature_names[-1]))
        for name in dict.fromkeys((*self.feature_names[:-1], *filter(None, [self._last_block]))):
            self._register_hooks(name, submodules[name])
        for submodule in submodules.values():
            if isinstance(submodule, (nn.modules.batchnorm._NormBase, nn.LayerNorm)):
                submodule.register_forward_pre_hook(_input_in_float32)

    def _register_hooks(self, name: str, submodule: nn.Module) -> None:
        """Register hooks that keep a submodule's output, and a reader's result on its map before its last pooling."""
        pooling, keep = last_pooling(submodule), partial(keep_map, self._maps, self._readers, name)
        if pooling is None:
            submodule.register_forward_hook(keep)
        else:
            pooling.register_forward_pre_hook(keep)
            all_parts = [part for _, part in self.module.named_modules(remove_duplicate=False)]
            if sum(part is pooling for part in all_parts) > 1:
                self._shared_poolings.add(name)
        submodule.register_forward_hook(partial(keep_output, self._captured, name))

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, without the judges' losses, which run this very network."""
        return {**self.__dict__, "losses": {}}

    def init(self, draws: Draws) -> NetworkState:
        """Draw fresh parameters as the module's own constructor distributes them.

        Common layers (linear, convolutions, norms) are drawn directly on the device. A module with parameters in any
        other layer, or whose constructor sets some itself, is rebuilt by its factory, which draws from the key.
        """
        if self._has_default_init:
            buffers = {name: b.detach().clone() for name, b in self.module.named_buffers()}
            return NetworkState(self._direct_init(draws.to(self.device)), buffers)
        with host_draws_from(draws.integer()):
            module = self.factory().to(self.device)
        params = {name: p.detach().clone() for name, p in module.named_parameters()}
        return NetworkState(params, {name: b.detach().clone() for name, b in module.named_buffers()})

    def _direct_init(self, draws: Draws) -> Tensors:
        """Draw torch's default initialisation of common layers from one generator."""
        generator = draws.generator()
        params: Tensors = {}
        for name, module in self.module.named_modules():
            prefix = f"{name}." if name else ""
            parameters = dict(module.named_parameters(recurse=False))
            if isinstance(module, WEIGHTED):
                bound = 1 / math.sqrt(parameters["weight"][0].numel())
                for key, parameter in parameters.items():
                    uniform = torch.rand(parameter.shape, generator=generator, device=self.device).to(parameter.dtype)
                    params[prefix + key] = (2 * uniform - 1) * bound
            else:
                for key, parameter in parameters.items():
                    constant = torch.ones_like(parameter) if key == "weight" else torch.zeros_like(parameter)
                    params[prefix + key] = constant.detach()
        order = [name for name, _ in self.module.named_parameters()]
        return {name: params[name] for name in order}

    def drawn(self, draws: Draws | None) -> AbstractContextManager[object]:
        """Return a context in which dropout draws its masks from a key; an empty one without dropout or key."""
        if draws is None or not self.random:
            return nullcontext()
        return global_draws_from(draws.fold("dropout").integer(), self.device)

    def __call__(
        self, state: NetworkState, *inputs: Any, train: bool = False, draws: Draws | None = None
    ) -> tuple[Any, Tensors]:
        """Return the module's output and its buffers after the call; training also updates the state's own buffers.

        Layers that write into buffers in place do so anyway, so pass copies to keep the old ones. Dropout in training
        draws from the key, if one is given.
        """
        if self.module.training != train or torch.compiler.is_compiling():  # a program must set the mode by itself
            self.module.train(train)
        tensors = {**state.params, **state.buffers}  # functional_call puts replaced buffers here
        with self.drawn(draws if train else None):
            output, _ = self._run(tensors, inputs)
        buffers = {name: tensors[name] for name in state.buffers}
        if train:
            state.buffers.update(buffers)
        return output, buffers

    def _run(self, tensors: Tensors, inputs: tuple[Any, ...]) -> tuple[Any, Tensors]:
        """Return the module's output and the tensors that its hooks captured, without keeping these."""
        self.forget()  # a call that failed may have left some
        output = torch.func.functional_call(self.module, tensors, inputs)
        captured = dict(self._captured)
        self.forget()
        return output, captured

    def forget(self) -> None:
        """Release captured tensors, after the module was called other than by this class."""
        self._captured.clear()

    @torch.no_grad()
    def settled(self, state: NetworkState, *inputs: Any) -> NetworkState:
        """Return the network with the inputs' own statistics as the running statistics of its batch norms."""
        norms = [m for m in self.module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if not norms:
            return state
        self.module.eval()
        momenta = [norm.momentum for norm in norms]
        tensors = {**state.params, **{name: tensor.clone() for name, tensor in state.buffers.items()}}
        try:
            for norm in norms:
                norm.train()
                norm.momentum = 1.0
            self._run(tensors, inputs)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.eval()  # calls expect all parts in the module's own mode
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
        _, captured = self._run({**state.params, **state.buffers}, inputs)
        missing = [name for name in self.feature_names if name not in captured]
        if missing:
            raise UnsupportedError(
                f"submodule {missing[0]!r} did not run in the forward pass, so it has no features; name another one "
                "with features=[...]"
            )
        return tuple(captured[name].flatten(1) for name in self.feature_names)

    def maps(self, state: NetworkState, read: MapReader, *inputs: Any) -> tuple[Tensor, ...]:
        """Return a reader's results on the features' maps, each before its pooling, and the embedding last.

        Maps are features of four dimensions; if a feature's submodule ends with a pooling, its map is the pooling's
        input. A map is read as soon as it is computed, so that without gradients only one is kept at a time. With an
        :class:`~mmdistill.abilities.EveryLayer` all maps are kept; the result then also has the features that are no
        maps, and the map of the module's ``last_block``, whose pooled maps are the embedding.

        Shapes:
            maps ``(n, channels, height, width)``; ``read`` returns ``(n, d)``.
        Raises:
            UnsupportedError: as :meth:`features`, or a pooling that several layers share.
        """
        every = isinstance(read, EveryLayer)
        if self._shared_poolings if every else self._shared_poolings.intersection(self.feature_names):
            raise UnsupportedError(
                "layers end in one and the same pooling module, so their maps cannot be told apart; give each its own"
            )
        self._readers.update(dict.fromkeys((*self.feature_names[:-1], *[self._last_block] * every), read))
        try:
            *features, embedding = self.features(state, *inputs)
            if not every:
                return (*(self._maps[name] for name in self.feature_names[:-1] if name in self._maps), embedding)
            layers = {
                name: self._maps.get(name, feature) for name, feature in zip(self.feature_names, features, strict=False)
            }
            last = self._maps.get(self._last_block)
            if last is None:
                return (*layers.values(), embedding)
            layers[self._last_block] = last
            return (*layers.values(), *[embedding] * (last.shape != embedding.shape), embedding)
        finally:
            self._readers.clear()
            self._maps.clear()


def _input_in_float32(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Convert a norm's bfloat16 input to float32, since torch's batched norms cannot mix it with their parameters."""
    return (args[0].float(), *args[1:]) if isinstance(args[0], Tensor) and args[0].dtype == torch.bfloat16 else None


_patching = threading.RLock()
"""Held while torch's classes, which all threads share, are patched."""


@contextmanager
def record_initial_values() -> Iterator[dict[nn.Module, Tensors]]:
    """Within this context record the parameters of each new common layer after its ``reset_parameters``."""
    initial_values: dict[nn.Module, Tensors] = {}

    def recorded(reset: Callable[[nn.Module], None]) -> Callable[[nn.Module], None]:
        def reset_and_record(module: nn.Module) -> None:
            reset(module)
            initial_values[module] = {name: p.detach().clone() for name, p in module.named_parameters(recurse=False)}

        return reset_and_record

    with _patching:
        owners = {
            next(base for base in kind.__mro__ if "reset_parameters" in vars(base)) for kind in (*WEIGHTED, *NORMS)
        }
        resets: dict[Any, Callable[[nn.Module], None]] = {owner: vars(owner)["reset_parameters"] for owner in owners}
        for owner, reset in resets.items():
            owner.reset_parameters = recorded(reset)
        try:
            yield initial_values
        finally:
            for owner, reset in resets.items():
                owner.reset_parameters = reset


def _has_default_init(module: nn.Module, initial_values: dict[nn.Module, Tensors]) -> bool:
    """Return whether all parameters of a module are those of common layers, as these initialised them."""
    for part in module.modules():
        parameters = dict(part.named_parameters(recurse=False))
        if parameters and not isinstance(part, WEIGHTED + NORMS):
            return False
        initial = initial_values.get(part, {})
        if parameters.keys() != initial.keys():
            return False
        if not all(torch.equal(parameters[name], initial[name]) for name in parameters):
            return False
    return True


def _may_draw(module: nn.Module) -> bool:
    """Return whether a module may draw random numbers when it runs, as dropout does.

    A user's class may call ``F.dropout`` and the like, so the names that its methods use are searched.
    """
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return True
    rate = getattr(module, "dropout", None)
    if isinstance(rate, (int, float)):  # recurrent and attention layers, those of torch-geometric too
        return rate > 0
    if type(module).__module__.startswith("torch.nn."):
        return False
    kinds = (kind for kind in type(module).__mro__ if issubclass(kind, nn.Module) and kind is not nn.Module)
    functions = (function for kind in kinds for function in vars(kind).values() if isfunction(function))
    return any(
        not DRAWING.isdisjoint(function.__code__.co_names) for function in functions if function.__name__ != "__init__"
    )
