"""Every kind of task tells networks of the same shapes apart by their description."""

from collections.abc import Callable
from functools import partial
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmdistill.graph.task import graph_task
from mmdistill.image import image_task
from mmdistill.networks.architecture import described_layers, differing_lines
from mmdistill.recsys import RecsysTask, load_interactions
from mmdistill.task import Task
from mmdistill.text.task import text_task
from tests.graph.toy import planted_graph
from tests.toys import BlobTask


def image(activation: type[nn.Module]) -> Task:
    def make() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 3), activation(), nn.Linear(3, 3))

    return image_task((torch.randn(9, 1, 4, 4), torch.arange(3).repeat(3)), model=make)


def text(activation: type[nn.Module]) -> Task:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 3), activation(), nn.Linear(3, 3))

    def encoder(texts: list[str]) -> Tensor:
        return torch.tensor([[float(ord(letter)) for letter in text[:4]] for text in texts])

    return text_task(
        ([f"text {i}"[::-1] + "    " for i in range(30)], ["red", "green", "blue"] * 10), encoder=encoder, model=make
    )


def autoencoder(activation: type[nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(10, 4), activation(), nn.Linear(4, 10))


def users(**options: Any) -> Task:
    return RecsysTask(load_interactions((torch.arange(200).view(20, 10) % 3 != 0).float().numpy()), **options)


KINDS: dict[str, Callable[[], list[Task]]] = {
    "image": lambda: [image(kind) for kind in (nn.ReLU, nn.Tanh)],
    "text": lambda: [text(kind) for kind in (nn.ReLU, nn.Tanh)],
    "graph": lambda: [
        *(graph_task(planted_graph(), model=name) for name in ("gcn", "mlp")),
        *(graph_task(planted_graph(), model="sgc", hops=hops) for hops in (1, 2)),
    ],
    "recsys": lambda: [
        *(users(depth=depth) for depth in (1, 2)),
        *(users(model=partial(autoencoder, kind)) for kind in (nn.ReLU, nn.Tanh)),
    ],
}


@pytest.mark.parametrize("kind", KINDS)
def test_networks_of_the_same_shapes_are_told_apart(kind: str) -> None:
    tasks, again = KINDS[kind](), KINDS[kind]()
    for one, same in zip(tasks, again, strict=True):
        assert described_layers(one) == described_layers(same) != ""
    for one, other in combinations(tasks, 2):
        assert described_layers(one) != described_layers(other)


def test_a_task_without_a_description_has_none() -> None:
    assert described_layers(BlobTask()) == ""


def test_descriptions_differ_in_their_first_line_that_does() -> None:
    assert differing_lines("a\n  b\nc", "a\n  d\ne") == ("b", "d")
    assert differing_lines("", "a") == ("nothing", "a")
    assert differing_lines("a", "a") == ("a", "a")
