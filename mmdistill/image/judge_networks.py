"""The networks that judge a task's images, by name: the distillation network and those of other families."""

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING, Self

import torch

from mmdistill.errors import MmdistillError, UnsupportedError
from mmdistill.image.data import ImageData
from mmdistill.image.kernel_judge import KERNELS
from mmdistill.image.models import (
    FAMILIES,
    NetworkKind,
    model_factory,
    model_name,
    parse_model,
    refusal,
    spelling,
)
from mmdistill.image.protocols import JudgingCase, Protocol
from mmdistill.names import canonical, unknown_name
from mmdistill.networks.module import FunctionalModule
from mmdistill.networks.trial import try_network

if TYPE_CHECKING:  # that module imports this one
    from mmdistill.image.task import ImageTask


def try_on_images(task: "ImageTask") -> None:
    """Run a task's network once on two training images, see :func:`~mmdistill.networks.trial.try_network`."""
    data = task.data
    images = data.normalise(data.train_images[:2].to(task.device))
    try_network(task, images, f"images of shape {data.shape}", len(data.class_names))


class JudgeNetworks:
    """A task's networks by name, any of :mod:`mmdistill.image.models` that takes its images; each is made once.

    Args:
        data: the images.
        network: the distillation network, which is the first judge's.
        model: its name.
        protocol: how networks train; it may name a judging ConvNet of its own.
        device: where they train.
        width: the distillation network's width, if its name does not say it.
        other_judges: names of judges that are not networks, for messages.

    Attributes:
        given: networks of the user's that judge beside these, by name.
    """

    def __init__(
        self,
        data: ImageData,
        network: FunctionalModule,
        model: str,
        protocol: Protocol,
        device: torch.device,
        width: int | None = None,
        other_judges: Iterable[str] = (),
    ) -> None:
        self.data = data
        self.own = network
        self.model = model
        self.protocol = protocol
        self.device = device
        self.width = width
        self.other_judges = other_judges
        self.given: dict[str, FunctionalModule] = {}
        self._others: dict[str, FunctionalModule] = {}
        self._fitting: set[str] = set()

    def with_given(self, name: str, network: FunctionalModule) -> Self:
        """Return a copy with one more network of the user's; the others are shared."""
        other = copy.copy(self)
        other.given = {**self.given, name: network}
        return other

    def given_as(self, judge: str) -> FunctionalModule | None:
        """Return the user's network of a judge, by name or title; None for other judges."""
        return self.given.get(judge.partition(" [")[0])

    def spelled(self, name: str) -> str:
        """Return a network's name in its one spelling; the distillation network's is :attr:`model`.

        Raises:
            ConfigError: an unknown network.
            UnsupportedError: a network that does not take these images.
        """
        if name in self.given:
            return name
        if canonical(name) == self.model:
            if (judging := self.first_judge()) != self.model and (reason := refusal(judging, self.data.shape)):
                raise UnsupportedError(
                    f"the protocol {self.protocol.name} judges by {judging}; choose another, since {reason}"
                )
            return self.model
        if canonical(name).split("-")[0] not in FAMILIES:
            raise unknown_name("judge", name, {*FAMILIES, *KERNELS, *self.other_judges}, scripts="a judge")
        spelled = self._spell(name)
        reason = refusal(spelled, self.data.shape)
        if reason:
            reason = reason.removeprefix(f"{spelled} ")
            raise UnsupportedError(f"{spelled} cannot judge {self.data.name}: {reason}")
        if spelled not in self._fitting:  # try a name once: it is looked up several times for each judging
            try:
                with torch.device("meta"):  # no memory for the parameters
                    model_factory(spelled, self.data.shape, len(self.data.class_names))()
            except MmdistillError as error:
                raise UnsupportedError(f"{spelled} cannot judge {self.data.name}: {error}") from error
            self._fitting.add(spelled)
        return spelled

    def _spell(self, name: str) -> str:
        """Return a name in its one spelling, given that the distillation network's name may leave out its width."""
        spelled = model_name(name, "judge", self.data.shape)
        if self.width is None:
            return spelled
        family, options = parse_model(name)
        width = options.pop("width", self.width)
        if model_name(spelling(family, options), shape=self.data.shape) != self.model:
            return spelled
        return self.model if width == self.width else spelling(family, {**parse_model(self.model)[1], "width": width})

    def kind(self, name: str) -> NetworkKind:
        """Return the kind of a judge's network, which sets its learning rate; a user's own network is shallow."""
        family = None if name in self.given else FAMILIES.get(self.spelled(name).split("-")[0])
        return "shallow" if family is None else family.kind

    def judging_case(self, name: str, images: int, *, scores: bool = False, whole: bool = False) -> JudgingCase:
        """Return the case of a judge and ``images`` images, whose targets may be scores or which are the whole set."""
        return JudgingCase(images, scores, whole, self.spelled(name) == self.model, self.kind(name))

    def network_name(self, name: str) -> str:
        """Return the name of a judge's network; the protocol may name another ConvNet for the first judge."""
        spelled = self.spelled(name)
        return self.first_judge() if spelled == self.model else spelled

    def first_judge(self) -> str:
        """Return the name of the first judge's network: the protocol's options at the distillation network's depth."""
        family = self.model.split("-")[0]
        if not self.protocol.network or family not in ("convnet", "freponet"):
            return self.model
        # FRePo's own network always doubles its channels.
        words = [word for word in self.protocol.network.split("-") if family == "convnet" or word != "x2"]
        depth = parse_model(self.model)[1].get("depth")
        return model_name("-".join([family, *([] if depth is None else [f"d{depth}"]), *words]))

    def network(self, name: str) -> FunctionalModule:
        """Return a judge's network; it is cached, so that it is compiled once.

        A network other than the distillation network has its default width.
        """
        if name in self.given:
            return self.given[name]
        network_name = self.network_name(name)
        if network_name == self.model:
            return self.own
        if network_name not in self._others:
            factory = model_factory(network_name, self.data.shape, len(self.data.class_names))
            self._others[network_name] = FunctionalModule(factory, device=self.device)
        return self._others[network_name]
