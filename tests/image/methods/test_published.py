"""Published constants of methods whose numbers no table of trajectories holds, against literal values."""

from operator import attrgetter
from types import SimpleNamespace

import pytest
import torch

from mmdistill.image import DOMAIN
from mmdistill.image.methods.implicit import MirroredImplicit, with_its_mirror
from mmdistill.image.methods.matching import COLOR_CROP_CUTOUT
from mmdistill.networks.early import EarlyStagePool
from mmdistill.networks.enriched import EnrichedPool
from mmdistill.networks.fit_protocol import FitProtocol
from mmdistill.networks.quadratic import ConjugateGradients
from mmdistill.networks.schedules import (
    AccuracyDriven,
    FreshNetworks,
    SteppedOnS,
    TrainedOnS,
    TrainedOnT,
    UnreadNetwork,
)
from mmdistill.networks.staggered import BusyPool, NetworkPool
from mmdistill.networks.teacher import TrainedNetwork
from mmdistill.networks.trajectories import InterpolatedExperts
from mmdistill.objectives.adversary import TEMPERATURE, StyleAdversary
from mmdistill.objectives.attention import AttentionMatching
from mmdistill.objectives.calibration import CalibratedMatching
from mmdistill.objectives.characteristic import CharacteristicMatching
from mmdistill.objectives.discrimination import DiscriminativeMatching
from mmdistill.objectives.distances import row_cosine
from mmdistill.objectives.distribution import DistributionMatching
from mmdistill.objectives.gradient import GradientMatching
from mmdistill.objectives.infinite_width import ConvolutionalKernel, FullyConnectedKernel
from mmdistill.objectives.inversion import BatchNormInversion
from mmdistill.objectives.kernel_ridge import FeatureKernel, KernelRidgeMatching, half_squared_error
from mmdistill.objectives.regularised import RegularisedMatching
from mmdistill.objectives.ridge import RandomFeatureRidge
from mmdistill.objectives.trajectory import PrunedTrajectoryMatching, TrajectoryMatching
from mmdistill.objectives.unrolled import UnrolledPerformance
from mmdistill.registry import get_method
from mmdistill.settings import OptimizerSpec

BETAS = (0.9, 0.999)
MATCHED = OptimizerSpec("sgd", 0.1, 0.5)
"""Of images in DC, DSA, CAFE and AddMem."""
LAMB = OptimizerSpec("lamb", 3e-4, betas=BETAS, cosine=True, floor=0.1)
UNROLLED = OptimizerSpec("adam", 0.01, betas=(0.5, 0.999), cosine=True)
STYLED = OptimizerSpec("sgd", 100.0, 0.95)

ON_S = {"network.lr": 0.01, "network.momentum": 0.0, "network.weight_decay": 0.0, "network.batch": 256}
GRADIENTS = {
    "settings.real_batch": 256,
    "settings.syn_batch": 0,
    "rates.codes": MATCHED,
    "network.__class__": TrainedOnS,
    **ON_S,
    "objective.__class__": GradientMatching,
    "objective.distance": row_cosine,
    "objective.reduction": "per-class",
    "objective.weights": "equal",
}
TILED = {
    "settings.init": "real",
    "settings.real_batch": 64,
    "settings.inner_momentum": 0.9,
    "method.storage": "images of 2 x 2 tiles, up-sampled to full size",
}
TRAJECTORIES = {"settings.steps": 5000, "settings.init": "real", "rates.codes": OptimizerSpec("sgd", 100.0, 0.5)}
KIP = {
    "settings.steps": 5000,
    "settings.real_batch": 500,
    "settings.init": "real",
    "settings.augment": False,
    "rates.codes": OptimizerSpec("adam", 0.04, betas=BETAS),
    "rates.labels": OptimizerSpec("adam", 0.04, betas=BETAS),
    "method.label": "unrestricted",
    "network.__class__": UnreadNetwork,
    "objective.__class__": KernelRidgeMatching,
    "objective.view": "classes",
    "objective.scale": "trace",
    "objective.loss": half_squared_error,
    "ridge": pytest.approx(1e-6, rel=1e-12),
}
PUBLISHED: dict[str, dict[str, object]] = {
    "kfs": {  # rates are the library's own
        "settings.steps": 20_000,
        "settings.augment": True,
        "rates.codes": OptimizerSpec("adam", 0.03),
        "rates.decoder": OptimizerSpec("adam", 0.003),
    },
    "kip": {
        **KIP,
        "objective.kernel": FullyConnectedKernel("ntk", depth=1, w_std=2**0.5, b_std=0.1, dtype=torch.float64),
    },
    "kip-conv": {
        **KIP,
        "objective.kernel": ConvolutionalKernel("ntk", depth=3, w_std=2**0.5, b_std=0.1, dtype=torch.float64),
    },
    "frepo": {
        "settings.steps": 500_000,
        "settings.real_batch": 1024,
        "settings.init": "real",
        "settings.augment": False,
        "rates.codes": LAMB,
        "rates.labels": LAMB,
        "method.label": "unrestricted",
        "network": NetworkPool(size=10, max_age=100, lr=3e-4, batch=1000, augment=False),
        "objective.kernel.__class__": FeatureKernel,
        "objective.view": "flat",
        "objective.scale": "trace",
        "objective.loss": half_squared_error,
        "objective.limit": 500,
        "ridge": pytest.approx(1e-6, rel=1e-12),
    },
    "rcig": {
        "settings.steps": 10_000,
        "settings.real_batch": 1024,
        "settings.init": "real",
        "settings.augment": False,
        "settings.ema": 0.99,
        "settings.ema_start": False,
        "rates.codes": OptimizerSpec("adabelief", 3e-3, betas=BETAS),
        "rates.labels": OptimizerSpec("adabelief", 3e-3, betas=BETAS),
        "rates.objective": OptimizerSpec("adabelief", 0.03, betas=BETAS),
        "method.label": "unrestricted",
        "network": BusyPool(size=30, max_age=100, lr=5e-5, batch=1000, steps=15, join=with_its_mirror),
        "objective.__class__": MirroredImplicit,
        "objective.l2": 5e-4,
        "objective.solver": ConjugateGradients(20),
        "objective.inverse": ConjugateGradients(20),
        "objective.clip": True,
    },
    "rfad": {
        "settings.steps": 100_000,
        "settings.real_batch": 4 * 1280,
        "settings.init": "real",
        "settings.augment": False,
        "rates.codes": OptimizerSpec("adabelief", 1e-3, betas=BETAS),
        "rates.labels": OptimizerSpec("adabelief", 1e-3, betas=BETAS),
        "rates.decoder": OptimizerSpec("adabelief", 5e-5, betas=BETAS),
        "rates.objective": OptimizerSpec("adabelief", 1e-2, betas=BETAS),
        "method.label": "unrestricted",
        "objective.__class__": RandomFeatureRidge,
        "objective.networks": 8,
        "objective.ridge": 5e-3,
        "objective.bias_std": 0.1,
        "objective.offset": 0.01,
    },
    "dd": {
        "settings.steps": 20_000,
        "settings.real_batch": 1024,
        "settings.init": "noise",
        "rates.codes": UNROLLED,
        "rates.objective": UNROLLED,
        "network.__class__": FreshNetworks,
        "objective.__class__": UnrolledPerformance,
        "objective.steps": 10 * 3,
        "objective.parts": 10,
        "objective.batch": None,
        "objective.augment": False,
        "objective.window": None,
        "objective.unrolling.momentum": 0.9,
        "objective.unrolling.optimizer": "sgd",
        "objective.rate.form": "softplus",
        "first_rates": pytest.approx([0.02] * 30),
    },
    "dm": {
        "settings.steps": 20_000,
        "settings.real_batch": 256,
        "settings.syn_batch": 0,
        "settings.init": "real",
        "settings.augment": True,
        "rates.codes": OptimizerSpec("sgd", 1.0, 0.5),
        "network.__class__": FreshNetworks,
        "objective.__class__": DistributionMatching,
        "objective.layers": "last",
    },
    "datadam": {
        "settings.steps": 8000,
        "settings.real_batch": 128,
        "settings.syn_batch": 0,
        "settings.init": "real",
        "settings.augment": True,
        "rates.codes": OptimizerSpec("sgd", 1.0, 0.5),
        "network.__class__": FreshNetworks,
        "objective.__class__": AttentionMatching,
        "objective.power": 4.0,
        "objective.balance": 0.01,
    },
    "dc": {**GRADIENTS, "settings.init": "noise", "settings.augment": False, "network.augment": False},
    "dsa": {**GRADIENTS, "settings.init": "real", "settings.augment": True, "network.augment": True},
    "cafe": {
        "settings.steps": 20_000,
        "settings.real_batch": 256,
        "settings.init": "noise",
        "rates.codes": OptimizerSpec("sgd", 0.1, 0.5, cosine=True),
        "network.__class__": AccuracyDriven,
        "network.outer_steps": 50,
        "network.inner_steps": 100,
        **ON_S,
        "objective.__class__": DiscriminativeMatching,
        "objective.balance": 0.01,
        "layer_weights": (0.1, 0.1, 1.0, 1.0, 1.0),
    },
    "idc": {**TILED, "network.__class__": TrainedOnT},
    "edd": {
        **TILED,
        "network.__class__": EarlyStagePool,
        "network.size": 5,
        "network.epochs": 2,
        "network.weakest": 0.01,
        "network.strongest": 0.09,
        "network.directions": 2,
    },
    "dance": {
        **TILED,
        "settings.steps": 10_000,
        "settings.real_batch": 128,
        "settings.inner_momentum": 0.0,
        "settings.syn_batch": 200,
        "rates.codes": OptimizerSpec("sgd", 0.2),
        "network.__class__": InterpolatedExperts,
        "network.experts": 5,
        "network.start_epochs": 1,
        "network.recipe.protocol": FitProtocol(60, batch=64, decay_at=(2 / 3, 5 / 6), decay=0.2, restart=False),
        "objective.__class__": CalibratedMatching,
        "objective.weight": 1.0,
        "objective.augment": COLOR_CROP_CUTOUT.of_classes,
        "objective.matching.__class__": DistributionMatching,
        "objective.matching.layers": "last",
    },
    "ncfm": {
        **TILED,
        "settings.steps": 20_000,
        "settings.real_batch": 1024,
        "settings.inner_momentum": 0.0,
        "settings.syn_batch": 0,
        "rates.codes": OptimizerSpec("adamw", 0.002, weight_decay=5e-4, cosine=True),
        "network.__class__": InterpolatedExperts,
        "network.experts": 20,
        "network.start_epochs": 1,
        "network.recipe.protocol": FitProtocol(60, batch=128, decay_at=(2 / 3, 5 / 6), decay=0.2, restart=False),
        "objective.__class__": CalibratedMatching,
        "objective.weight": 1.0,
        "objective.augment": COLOR_CROP_CUTOUT.of_classes,
        "objective.matching.__class__": CharacteristicMatching,
        "objective.matching.frequencies": 4096,
        "objective.matching.amplitude": 0.5,
    },
    "idm": {
        "settings.steps": 20_000,
        "settings.real_batch": 256,
        "settings.syn_batch": 0,
        "settings.init": "real",
        "settings.augment": True,
        "rates.codes": OptimizerSpec("sgd", 2 * 0.2 * 0.2**2),
        "network.__class__": EnrichedPool,
        "network.size": 100,
        "network.first": 4,
        "network.every": 30,
        "network.trained": 2,
        "network.steps": 10,
        "network.lr": 0.01,
        "network.momentum": 0.9,
        "network.weight_decay": 5e-4,
        "network.batch": 256,
        "network.recount": 100,
        "objective.__class__": RegularisedMatching,
        "objective.weight": 100 * 0.5,
    },
    "addmem": {
        "settings.steps": 50_000,
        "settings.init": "noise",
        "rates.codes": MATCHED,
        "method.label": "hard",
        "objective.__class__": UnrolledPerformance,
        "objective.steps": 150,
        "objective.batch": 320,
        "objective.augment": False,
        "objective.window": None,
        "objective.unrolling.momentum": 0.9,
        "objective.unrolling.optimizer": "sgd",
        "first_rates": pytest.approx(0.01),
    },
    "bptt": {
        "settings.steps": 50_000,
        "settings.real_batch": 640,
        "settings.init": "noise",
        "settings.clip": 2.0,
        "rates.codes": MATCHED,
        "method.label": "hard",
        "objective.__class__": UnrolledPerformance,
        "objective.steps": 150,
        "objective.batch": 100,
        "objective.augment": False,
        "objective.window": None,
        "objective.unrolling.momentum": 0.9,
        "objective.unrolling.optimizer": "sgd",
        "first_rates": pytest.approx(0.01),
    },
    "mtt": {**TRAJECTORIES, "objective.__class__": TrajectoryMatching, "objective.unrolling.momentum": 0.0},
    "ddpp": {**TRAJECTORIES, "objective.__class__": PrunedTrajectoryMatching, "objective.threshold": 0.1},
    "haba": {
        "settings.steps": 15_000,
        "settings.init": "real",
        "rates.codes": STYLED,
        "rates.decoder": STYLED,
        "rates.objective": OptimizerSpec("sgd", 1e-5, 0.9),
        "objective.__class__": StyleAdversary,
        "objective.objective.__class__": TrajectoryMatching,
        "objective.styles": 5,
        "objective.weight": 0.1,
        "objective.lr": 0.001,
        "objective.momentum": 0.9,
        "temperature": 0.07,
    },
    "sre2l": {
        "settings.steps": 1000,
        "settings.init": "noise",
        "settings.teacher_epochs": 200,
        "rates.codes": OptimizerSpec("adam", 0.25, betas=(0.5, 0.9), cosine=True),
        "network.__class__": TrainedNetwork,
        "network.epochs": 200,
        "objective.__class__": BatchNormInversion,
        "objective.weight": 0.01,
        "objective.first": 10.0,
        "objective.together": False,
        "objective.seen.shift": 4,
        "objective.seen.share": 0.0,
    },
    "ld": {
        "settings.real_batch": 1024,
        "rates.labels": OptimizerSpec("adam", 1e-3, betas=BETAS),
        "network.__class__": SteppedOnS,
        "network.lr": 1e-3,  # of Adam
        "network.batch": 50,
        "network.inner_steps": 1,
        "objective.__class__": UnrolledPerformance,
        "objective.steps": 1,
        "objective.batch": 50,
        "first_rates": pytest.approx(0.01),
    },
    "rat-bptt": {
        "settings.steps": 60_000,
        "settings.real_batch": 5000,
        "settings.init": "noise",
        "rates.codes": OptimizerSpec("adam", 1e-3, betas=BETAS),
        "objective.steps": 200,
        "objective.window": 60,
        "objective.batch": 100,
        "objective.augment": True,
        "objective.unrolling.optimizer": "adam",
        "first_rates": pytest.approx(1e-3),
    },
}
"""At ten images per class of CIFAR-10, by where each number is: settings, optimizers' rates, network and objective.

Sources: the public code of the papers. google-research/kip; yongchao97/FRePo; yolky/RFAD, yolky/RCIG;
SsnL/dataset-distillation (DD); VICO-UoE/DatasetCondensation (DC, DSA, DM); kaiwang960112/CAFE;
snu-mllab/Efficient-Dataset-Condensation (IDC); ncsu-dk-lab/Acc-DD (EDD); Hansong-Zhang/DANCE; uitrbn/IDM;
gszfwsb/NCFM;
princetonvisualai/RememberThePast-DatasetDistillation (AddMem, BPTT); Huage001/DatasetFactorization (HaBa);
ondrejbohdal/label-distillation (LD); GeorgeCazenavette/mtt-distillation; fengyzpku/Simple_Dataset_Distillation
(RaT-BPTT); DataDistillation/DataDAM (its table of settings).
DD's momentum is the survey's (Eq. 3), and KIP's, FRePo's and RFAD's labels are learned as in its Table 1.

No code has these numbers: KIP's steps (1000 or more, it says), AddMem's (at most 500,000), the longest loops of CAFE,
smooth annealing in DD and CAFE, DDPP's threshold, DataDAM's real batch (its code's default is 64).
"""


def composed(name: str, ipc: int) -> SimpleNamespace:
    """What a published method is made of, and the numbers that its objective keeps as tensors or computes."""
    method = get_method(DOMAIN, name, "cifar10")
    settings = method.settings(ipc)
    objective = method.make_objective(settings)
    made = SimpleNamespace(method=method, settings=settings, rates=SimpleNamespace(**settings.optimizers))
    made.network, made.objective, made.temperature = method.network(settings), objective, TEMPERATURE
    if isinstance(objective, KernelRidgeMatching):
        made.ridge = objective.log_ridge.exp().item()
    if isinstance(objective, UnrolledPerformance):
        made.first_rates = objective.rate().tolist()
    if isinstance(objective, DiscriminativeMatching):
        made.layer_weights = objective.layer_weights(5)
    return made


ELSEWHERE = (
    *("dcc", "egm", "cafe+dsa"),  # variants of methods above, see test_matching and test_table_1
    *("tesla", "ftd", "datm", "pad"),  # see test_unrolled, test_aligned and test_prioritized
    "it-gan",  # see test_generated
    "rded",  # see test_realistic
    *("krr", "random-soft"),  # baselines of this library
)
"""Methods without literal values above."""


def test_each_method_has_published_constants_here_or_elsewhere() -> None:
    assert sorted((*PUBLISHED, *ELSEWHERE)) == sorted(DOMAIN.methods)


@pytest.mark.parametrize("name", PUBLISHED)
def test_methods_are_as_published(name: str) -> None:
    made = composed(name, 10)
    assert {path: attrgetter(path)(made) for path in PUBLISHED[name]} == PUBLISHED[name]


@pytest.mark.parametrize("name", ["dc", "dsa"])
def test_loops_of_gradient_matching_follow_ipc(name: str) -> None:
    table = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
    for ipc, loops in {**table, 5: table[1], 25: table[20], 100: table[50]}.items():
        made = composed(name, ipc)
        assert (made.network.outer_steps, made.network.inner_steps) == loops
        assert made.settings.steps == 1000 * loops[0]  # networks
        assert made.rates.codes == MATCHED


def test_rates_and_parts_that_follow_ipc() -> None:
    assert {ipc: composed("dm", ipc).rates.codes.lr for ipc in (1, 50, 99, 100)} == {1: 1, 50: 1, 99: 1, 100: 10}
    assert {ipc: composed("datadam", ipc).rates.codes.lr for ipc in (1, 50, 51)} == {1: 1, 50: 1, 51: 10}
    assert get_method(DOMAIN, "dm", "cifar100").settings(100).optimizers["codes"] == OptimizerSpec("sgd", 1.0, 0.5)
    assert {ipc: composed("dance", ipc).rates.codes.lr for ipc in (1, 10, 50)} == {1: 0.02, 10: 0.2, 50: 1.0}
    idm = {ipc: composed("idm", ipc) for ipc in (1, 10, 50)}
    assert {ipc: one.settings.real_batch for ipc, one in idm.items()} == {1: 5000, 10: 256, 50: 256}
    assert {ipc: one.network.every for ipc, one in idm.items()} == {1: 5, 10: 30, 50: 30}
    assert {ipc: one.network.recount for ipc, one in idm.items()} == {1: 100, 10: 100, 50: 500}
    assert {ipc: one.objective.weight for ipc, one in idm.items()} == {1: 50, 10: 50, 50: 10}
    assert {ipc: composed("dd", ipc).objective.parts for ipc in (1, 5, 10, 50)} == {1: 1, 5: 5, 10: 10, 50: 10}
