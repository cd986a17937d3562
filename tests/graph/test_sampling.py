import torch

from mmdistill.graph.sampling import ClassMembers
from mmdistill.runtime import Draws

LABELS = torch.tensor([2, 0, 2, 2, 0, 2, 2, 0])


def test_samples_are_of_their_class_and_small_classes_come_whole() -> None:
    members = ClassMembers(LABELS, 4)
    few, whole, none = members.draw(Draws(1), torch.tensor([2, 0, 1]), 3)
    assert (LABELS[few] == 2).all()
    assert len(few.unique()) == 3
    assert whole.tolist() == [1, 4, 7]
    assert not len(none)
    assert torch.equal(few, members.draw(Draws(1), torch.tensor([2]), 3)[0])  # whichever classes are asked for


def test_classes_are_drawn_apart() -> None:
    first, second = ClassMembers(torch.arange(2).repeat_interleave(50), 2).draw(Draws(0), torch.arange(2), 10)
    assert not torch.equal(first, second - 50)


def test_every_sample_is_as_likely() -> None:
    members, counts = ClassMembers(LABELS, 3), torch.zeros(len(LABELS))
    for seed in range(400):
        counts[members.draw(Draws(seed), torch.tensor([2]), 2)[0]] += 1
    assert (counts[LABELS == 2] - 160).abs().max() < 45  # 4.6 deviations
    assert not counts[LABELS != 2].any()
