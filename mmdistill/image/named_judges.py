"""Who can judge images, by name: the network distilled with, other networks, kernels, and what a user adds."""

from typing import TYPE_CHECKING

import torch

from mmdistill.errors import MmdistillError, UnsupportedError
from mmdistill.image.data import ImageData
from mmdistill.image.judges import JUDGES, ImageJudge, NetworkJudge, entry_of
from mmdistill.image.kernel_judge import KERNELS
from mmdistill.image.models import (
    FAMILIES,
    NetworkKind,
    fitting_models,
    model_factory,
    model_name,
    parse_model,
    refusal,
    spelling,
)
from mmdistill.image.protocols import JudgingCase, Protocol
from mmdistill.names import canonical, unknown_name
from mmdistill.networks.module import FunctionalModule

if TYPE_CHECKING:  # which has its judges named here
    from mmdistill.image.task import ImageTask


class NamedJudges:
    """The judges of one task: any network of :mod:`mmdistill.image.models`, or an entry of the other judges.

    Args:
        data: what is judged.
        network: what is distilled with.
        model: its name, which is also the first judge's.
        protocol: how networks train, which may state a ConvNet of its own.
        device: where they do.
        width: of what is distilled with, where it is not in its name.
    """

    def __init__(
        self,
        data: ImageData,
        network: FunctionalModule,
        model: str,
        protocol: Protocol,
        device: torch.device,
        width: int | None = None,
    ) -> None:
        self.data = data
        self.own = network
        self.model = model
        self.protocol = protocol
        self.device = device
        self.width = width
        self.usual = (*dict.fromkeys((model, *fitting_models(data.shape), "ntk", *filter(JUDGES.added, JUDGES))),)
        self._others: dict[str, FunctionalModule] = {}
        self._fitting: set[str] = set()

    def judge(self, name: str, task: "ImageTask") -> ImageJudge:
        """Return the judge of a task by its name, or by the title of its scores; whether there is one shows later."""
        make = JUDGES.get(entry_of(name))
        return NetworkJudge(task, self, name) if make is None else make(task, name)

    def spelled(self, name: str) -> str:
        """Return a network's name in its one spelling, the own network's for that network.

        Raises:
            ConfigError: an unknown network.
            UnsupportedError: one that does not take these images.
        """
        if canonical(name) == self.model:
            if (own := self._own()) != self.model and (reason := refusal(own, self.data.shape)):
                raise UnsupportedError(
                    f"the protocol {self.protocol.name} judges by {own}; choose another, since {reason}"
                )
            return self.model
        if canonical(name).split("-")[0] not in FAMILIES:
            raise unknown_name("judge", name, {*FAMILIES, *KERNELS, *JUDGES}, scripts="a judge")
        spelled = self._beside_own(name)
        reason = refusal(spelled, self.data.shape)
        if reason:
            reason = reason.removeprefix(f"{spelled} ")
            raise UnsupportedError(f"{spelled} cannot judge {self.data.name}: {reason}")
        if spelled not in self._fitting:  # a name is looked up several times for each judging
            try:
                with torch.device("meta"):  # without numbers
                    model_factory(spelled, self.data.shape, len(self.data.class_names))()
            except MmdistillError as error:
                raise UnsupportedError(f"{spelled} cannot judge {self.data.name}: {error}") from error
            self._fitting.add(spelled)
        return spelled

    def _beside_own(self, name: str) -> str:
        """Return a name in its one spelling, where a width that the own network's name leaves out may stand in it."""
        spelled = model_name(name, "judge", self.data.shape)
        if self.width is None:
            return spelled
        family, options = parse_model(name)
        width = options.pop("width", self.width)
        if model_name(spelling(family, options), shape=self.data.shape) != self.model:
            return spelled
        return self.model if width == self.width else spelling(family, {**parse_model(self.model)[1], "width": width})

    def kind(self, name: str) -> NetworkKind:
        """Return the kind of a judge's network, by which it may have a rate of its own; a user's is shallow."""
        family = FAMILIES.get(self.spelled(name).split("-")[0])
        return "shallow" if family is None else family.kind

    def occasion(self, name: str, images: int, *, scores: bool = False, whole: bool = False) -> JudgingCase:
        """Return what a judge is to judge: so many images, whose targets may be scores, or the whole training set."""
        return JudgingCase(images, scores, whole, self.spelled(name) == self.model, self.kind(name))

    def network_name(self, name: str) -> str:
        """Return the name of a judge's network, which is the protocol's where it states one for ConvNets."""
        found = self.spelled(name)
        return self._own() if found == self.model else found

    def _own(self) -> str:
        """Return the name of the first judge's network: the protocol's options, of the depth distilled with."""
        family = self.model.split("-")[0]
        if not self.protocol.network or family not in ("convnet", "freponet"):
            return self.model
        # FRePo's own network doubles its channels by itself.
        words = [word for word in self.protocol.network.split("-") if family == "convnet" or word != "x2"]
        depth = [f"d{own}"] if (own := parse_model(self.model)[1].get("depth")) is not None else []
        return model_name("-".join([family, *depth, *words]))

    def network(self, name: str) -> FunctionalModule:
        """Return a judge's network, one other than that distilled with in its default width; it is compiled once."""
        found = self.network_name(name)
        if found == self.model:
            return self.own
        if found not in self._others:
            factory = model_factory(found, self.data.shape, len(self.data.class_names))
            self._others[found] = FunctionalModule(factory, device=self.device)
        return self._others[found]
