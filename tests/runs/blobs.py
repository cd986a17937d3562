"""Short runs on blobs of points, and what they made."""

from torch import Tensor

from mmdistill.distilled import DistilledSet
from mmdistill.method import Method
from mmdistill.methods import CORE_METHODS
from tests.toys import BlobTask


def method(name: str = "dc", **changes: object) -> Method:
    base = {"steps": 12, "real_batch": 8, "augment": name == "dm", "outer_steps": 4, "inner_steps": 3}
    return CORE_METHODS[name].with_settings(**{**base, **changes})


def samples(result: DistilledSet) -> Tensor:
    assert isinstance(result.batch.inputs, Tensor)
    return result.batch.inputs


class Validated(BlobTask):
    """Scores the third validation best."""

    calls = 0

    def validate(self, synthetic: object, draws: object, learned: object) -> float:
        self.calls += 1
        return -abs(self.calls - 3.0)


class Undecided(BlobTask):
    """Scores all steps alike."""

    def validate(self, synthetic: object, draws: object, learned: object) -> float:
        return 0.5
