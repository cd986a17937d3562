"""Run an authors' script as it is, on random images or a generated graph and a CPU, while its updates are watched.

Nothing of a script is changed. What it asks for and a machine without a GPU, the network or old packages lacks is given
to it: data sets of random images, loggers that do nothing, ``.cuda()`` that returns the tensor, the CPU where it names
CUDA, NumPy's old ``int``, and writes from a view of the tensor written to, which today's torch refuses. For graphs
``authors_graph.py`` has more.
"""

import os
import runpy
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import numpy
import torch
import torchvision
from authors_graph import stand_in_graph, write_expert_on_graph
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.data import Dataset

from mmdistill.graph.methods import METHODS as GRAPH_METHODS
from mmdistill.method import Method
from mmdistill.objectives.distances import squared_error
from mmdistill.objectives.gradient import GradientMatching

IMAGES = 4000
"""Of ten classes."""
FEATURES = 1433
"""Of a node of Cora."""

UNREAD = {
    "wandb": (),
    "kornia": (),
    "efficientnet_pytorch": (),
    "torchnet": (),
    "einops": ("einops.layers", "einops.layers.torch"),
    "ogb": ("ogb.nodeproppred",),
    "tensorboardX": (),
}
"""Packages with their modules that scripts import, and of which what is timed reads torchnet's meter alone."""


@dataclass(frozen=True)
class Pair:
    """An authors' program and our method, at equal settings.

    Args:
        repository: on GitHub; ``commit`` is what was measured.
        scripts: the program and its options; those before the last one make what it needs.
        method: ours, with its ``settings`` and further ``options`` of ``distill``.
        shape: of one image.
        ipc: images per class.
        nodes: of the synthetic graph; 0: images.
        model: our network.
        held: numbers of the codes or bases that make images, in one tensor; 0: images themselves are learned.
        parts: steps in which the program updates all images once; ours takes one.
        first: numbers of a tensor that the program updates in its first steps, where that is not the nodes' features.
        before: gives the program what it alone asks for, files in the working directory too.
    """

    repository: str
    commit: str
    scripts: tuple[str, ...]
    method: str | Method
    settings: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    shape: tuple[int, int, int] = (1, 28, 28)
    ipc: int = 1
    held: int = 0
    nodes: int = 0
    model: str = "convnet"
    parts: int = 1
    first: int = 0
    before: Callable[[], None] = lambda: None

    @property
    def numbers(self) -> int:
        """How many numbers the synthetic images, nodes' features or codes have."""
        if self.held:
            return self.held
        if self.nodes:
            return self.nodes * FEATURES
        channels, height, width = self.shape
        return 10 * self.ipc * channels * height * width


class RandomImages(Dataset[tuple[Any, int]]):
    """Random images in the form of torchvision's data sets; class i has every tenth image from i on."""

    shape = (1, 28, 28)
    classes = tuple("0123456789")

    def __init__(self, *args: object, train: bool = True, transform: Any = None, **kwargs: object) -> None:
        self.transform = transform
        generator = torch.Generator().manual_seed(0 if train else 1)
        channels, *size = self.shape
        pixels = torch.randint(256, (IMAGES if train else 100, *size, channels), generator=generator, dtype=torch.uint8)
        self.data: Any = pixels.squeeze(3) if channels == 1 else pixels.numpy()
        targets = torch.arange(len(pixels)) % 10
        self.targets: Any = targets if channels == 1 else targets.tolist()

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        pixels = self.data[index]
        image = torchvision.transforms.functional.to_pil_image(pixels)
        return (image if self.transform is None else self.transform(image)), int(self.targets[index])


class WithoutCUDA(TorchFunctionMode):
    """Within this context what asks for CUDA's device gets the CPU's."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call torch's function."""
        args = tuple(without_cuda(value, number=func is Tensor.to) for value in args)
        named = {name: without_cuda(value, number=name == "device") for name, value in (kwargs or {}).items()}
        return func(*args, **named)


def without_cuda(value: Any, number: bool = False) -> Any:
    """Return an argument of a torch function, the CPU in place of CUDA's device, which may be a ``number``."""
    named = isinstance(value, str | torch.device) and str(value).startswith("cuda")
    return "cpu" if named or (number and type(value) is int) else value


def run_script(pair: Pair, checkouts: Path, workplace: Path) -> None:
    """Run the authors' scripts in a folder of their own; the last one distils."""
    checkout = checkouts.resolve() / pair.repository.partition("/")[2]
    os.chdir(workplace)
    sys.path.insert(0, str(checkout))
    stand_in(pair.shape)
    pair.before()
    for line in pair.scripts:
        script, *options = shlex.split(line)
        path = checkout / script
        sys.argv = [str(path), *options]
        sys.path.insert(0, str(path.parent))
        runpy.run_path(str(path), run_name="__main__")


def stand_in(shape: tuple[int, int, int]) -> None:
    """Give a script what a CPU without the network and old packages lacks."""
    absent = {package for package in UNREAD if find_spec(package) is None}
    for package in absent:
        sys.modules.update({name: stub(name) for name in (package, *UNREAD[package])})
    vars(numpy)["int"] = int
    torch.cuda.set_device = lambda device: None
    WithoutCUDA().__enter__()
    name = "MNIST" if shape[0] == 1 else "CIFAR10"
    setattr(torchvision.datasets, name, type(name, (RandomImages,), {"shape": shape}))
    Tensor.cuda = lambda tensor, *args, **kwargs: tensor  # type: ignore[method-assign]
    nn.Module.cuda = lambda module, *args, **kwargs: module  # type: ignore[method-assign]
    write, view, move = Tensor.__setitem__, Tensor.view, nn.Module.to

    def moved(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        return move(module, *(without_cuda(value, number=True) for value in args), **kwargs)

    def viewed(tensor: Tensor, *size: Any) -> Tensor:
        try:
            return view(tensor, *size)
        except RuntimeError:  # a CPU's pooling may return channels last
            return tensor.reshape(*size)

    def written(tensor: Tensor, index: Any, value: Any) -> None:
        write(tensor, index, value.clone() if isinstance(value, Tensor) else value)

    Tensor.__setitem__, Tensor.view = written, viewed  # type: ignore[method-assign, assignment]
    nn.Module.to = moved  # type: ignore[method-assign, assignment]


def write_expert() -> None:
    """Write random weights as DANCE's expert, in the folder that its program names in place of one."""
    folder = Path("<>")
    folder.mkdir()
    for moment in ("init", "trained"):
        weights = import_module("models.convnet").ConvNet(10).state_dict()
        torch.save(weights, folder / f"premodel0_{moment}.pth.tar")


def write_config() -> None:
    """Write the options of BPTT's and AddMem's program, without its judges, where it looks for them."""
    options = Path(sys.path[0], "configs", "compressors_bptt_interventions.yml")
    Path("configs").mkdir()
    Path("configs/unjudged.yml").write_text(options.read_text().replace("num_eval: 10", "num_eval: 0"))


class AccuracyMeter:
    """Counts right predictions as torchnet does."""

    def __init__(self, accuracy: bool) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all."""
        self.n = self.right = 0

    def add(self, scores: Tensor, classes: Tensor) -> None:
        """Count scores ``(n, C)`` of samples of the classes ``(n,)``."""
        self.n += len(classes)
        self.right += int((scores.argmax(1) == classes).sum())

    def value(self) -> list[float]:
        """Return the accuracy in percent."""
        return [100 * self.right / self.n]


def stub(name: str) -> ModuleType:
    """Return a package whose calls do nothing; wandb gives back the options it is given, torchnet's meter counts."""
    module = MagicMock()
    module.meter.ClassErrorMeter = AccuracyMeter
    module.__spec__, module.__name__ = ModuleSpec(name, None), name
    module.init.side_effect = lambda **given: setattr(module.config, "_items", vars(given.get("config", object)))
    return module


DATASET_CONDENSATION = "VICO-UoE/DatasetCondensation", "53f63a6"
ALTERNATING = 100
"""Steps in which ours comes to the features; like the authors' it begins with the structure."""
GENERATOR = 128 * 128
"""Numbers of the middle layer of GCond's structure. Its 200 first steps learn that, but differentiate features too."""
GCOND = "ChandlerBang/GCond", "052305b"
CORA = "--dataset cora --nlayers 2 --reduction_rate .5"
REMEMBER = "princetonvisualai/RememberThePast-DatasetDistillation", "f49e631"
REMEMBERED = (
    "srcs/main.py --config unjudged.yml --backbone_name ConvNet --dataset CIFAR10 --task_sampler_nc 10 "
    "--bptt_inner_steps 50 --inner_optimizer SGD --inner_momentum .9 --interventions none"
)
PAIRS = {
    "dm": Pair(
        *DATASET_CONDENSATION,
        ("main_DM.py --dataset MNIST --ipc 1 --num_exp 1 --num_eval 0 --dsa_strategy color_crop_cutout_scale_rotate",),
        "dm",
        {"real_batch": 256},
    ),
    "dc": Pair(
        *DATASET_CONDENSATION,
        ("main.py --method DC --dataset MNIST --ipc 1 --num_exp 1 --num_eval 0",),
        "dc",
        {"real_batch": 256},
    ),
    "dc-ten": Pair(
        *DATASET_CONDENSATION,
        ("main.py --method DC --dataset MNIST --ipc 10 --num_exp 1 --num_eval 0",),
        "dc",
        {"real_batch": 256},
        ipc=10,
    ),
    "dsa": Pair(
        *DATASET_CONDENSATION,
        (
            "main.py --method DSA --dataset MNIST --ipc 1 --num_exp 1 --num_eval 0 --dsa_strategy "
            "color_crop_cutout_scale_rotate",
        ),
        "dsa",
        {"real_batch": 256},
    ),
    "idc": Pair(
        "snu-mllab/Efficient-Dataset-Condensation",
        "ceac95a",
        ("condense.py --dataset mnist --ipc 1 --factor 2 --metric mse --batch_real 64 --n_data 500 --test",),
        "idc",
        {"real_batch": 64, "inner_steps": 8, "inner_batch": 64},
        parts=10,
    ),
    "mtt": Pair(
        "GeorgeCazenavette/mtt-distillation",
        "50dccea",
        (
            "buffer.py --dataset CIFAR10 --num_experts 1 --train_epochs 2 --save_interval 1",
            "distill.py --dataset CIFAR10 --ipc 1 --num_eval 0 --syn_steps 50 --expert_epochs 1 --max_start_epoch 1",
        ),
        "mtt",
        {"experts": 1, "expert_epochs": 2, "expert_steps": 1, "start_epochs": 1, "inner_steps": 50},
        shape=(3, 32, 32),
    ),
    "haba": Pair(
        "Huage001/DatasetFactorization",
        "60c9128",
        (
            "buffer.py --dataset CIFAR10 --zca --num_experts 1 --train_epochs 2 --save_interval 1",
            "distill_fac.py --dataset CIFAR10 --zca --ipc 1 --num_eval 0 --n_style 5 --syn_steps 50 --expert_epochs 1 "
            "--max_start_epoch 1",
        ),
        "haba",
        {"experts": 1, "expert_epochs": 2, "expert_steps": 1, "start_epochs": 1, "inner_steps": 50, "init": "noise"},
        shape=(3, 32, 32),
        ipc=2,
        held=10 * 3 * 32 * 32,
    ),
    "bptt": Pair(
        *REMEMBER,
        (f"{REMEMBERED} --compressor imgs_embedding_minibatch --ipc 1 --compressor_minibatch_size 1",),
        "bptt",
        {"real_batch": 640, "inner_steps": 50, "inner_batch": 10},
        shape=(3, 32, 32),
        before=write_config,
    ),
    "addmem": Pair(
        *REMEMBER,
        (
            f"{REMEMBERED} --compressor imgs_embedding_basis_minibatch --ipc 1 --fixed_budget 1 --n_basis 16 "
            "--downsample_scale 2 --compressor_minibatch_size 1",
        ),
        "addmem",
        {"real_batch": 640, "inner_steps": 50, "inner_batch": 10},
        shape=(3, 32, 32),
        held=16 * 3 * 16 * 16,
        before=write_config,
    ),
    "tesla": Pair(
        "justincui03/tesla",
        "488842e",
        (
            "distill.py --dataset CIFAR10 --data_path data --ipc 1 --num_eval 0 --syn_steps 50 --expert_epochs 1 "
            "--max_start_epoch 1 --random_trajectory",
        ),
        "tesla",
        {"experts": 1, "expert_epochs": 2, "expert_steps": 1, "start_epochs": 1, "inner_steps": 50},
        {"label": "hard"},
        shape=(3, 32, 32),
    ),
    "datadam": Pair(
        "DataDistillation/DataDAM",
        "0f6ea09",
        (
            "main_DataDAM.py --dataset CIFAR10 --ipc 1 --num_eval 1 --epoch_eval_train 1 --batch_real 64 "
            "--data_path data --save_path result",
        ),
        "datadam",
        {"real_batch": 64},
        shape=(3, 32, 32),
    ),
    "ftd": Pair(
        "AngusDujw/FTD-distillation",
        "711532a",
        (
            "buffer/buffer_FTD.py --dataset CIFAR10 --num_experts 1 --train_epochs 1 --save_interval 1",
            "distill/distill_FTD.py --dataset CIFAR10 --ipc 1 --num_eval 1 --epoch_eval_train 1 --syn_steps 50 "
            "--expert_epochs 1 --max_start_epoch 1",
        ),
        "ftd",
        {"experts": 1, "expert_epochs": 1, "expert_steps": 1, "start_epochs": 1, "inner_steps": 50},
        shape=(3, 32, 32),
    ),
    "dance": Pair(
        "Hansong-Zhang/DANCE",
        "3f6b8b6",
        ("DANCE.py --reproduce --dataset cifar10 --ipc 1 --factor 2 --batch_real 128 --num_premodel 1 --test",),
        "dance",
        {"real_batch": 128, "experts": 1, "expert_epochs": 1, "expert_steps": 1, "start_epochs": 1},
        shape=(3, 32, 32),
        parts=20,
        before=write_expert,
    ),
    "dcc": Pair(
        "Saehyung-Lee/DCC",
        "5073a44",
        (
            "main.py --method DSA --contrast --outer_warmup 0 --inner_warmup 0 --dataset CIFAR10 --ipc 1 --num_exp 1 "
            "--num_eval 0 --batch_real 64",
        ),
        "dcc",
        {"real_batch": 64},
        shape=(3, 32, 32),
    ),
    "egm": Pair(
        "ZixuanJiang/improved-dataset-condensation",
        "be1be33",
        (
            "multi-level-overfitting.py --dataset MNIST --ipc 1 --num_exp 1 --num_eval 0 --dis_metric improved "
            "--data_path data",
        ),
        "egm",
        {"real_batch": 256},
    ),
    "idm": Pair(
        "uitrbn/IDM",
        "fe23bbc",
        (
            "IDM_cifar10.py --model ConvNet --ipc 1 --aug --net_decay --embed_last 1000 --syn_ce --ce_weight 0.5 "
            "--train_net_num 1 --batch_real 128 --trained_bs 128 --model_train_steps 2",
        ),
        "idm",
        {"real_batch": 128, "inner_batch": 128, "inner_steps": 2, "outer_steps": 30},
        shape=(3, 32, 32),
        parts=10,
    ),
    "gcond": Pair(
        *GCOND,
        (f"train_gcond_transduct.py {CORA}",),
        "gcond",
        {"steps": ALTERNATING},
        nodes=70,
        model="sgc",
        first=GENERATOR,
        before=stand_in_graph,
    ),
    "doscond": Pair(
        *GCOND,
        (f"train_gcond_transduct.py {CORA} --sgc 0 --dis_metric mse --one_step 1",),
        replace(
            GRAPH_METHODS["doscond"],
            objective=lambda: GradientMatching(squared_error, weights="share"),
            parameterization=GRAPH_METHODS["gcond"].parameterization,
        ),
        {"steps": ALTERNATING},
        nodes=70,
        model="gcn",
        before=stand_in_graph,
    ),
    "sfgc": Pair(
        "Amanda-Zheng/SFGC",
        "b034621",
        ("distill_transduct_adj_identity.py --section cora",),
        "sfgc",
        {"inner_steps": 500, "experts": 1, "expert_steps": 1},
        nodes=70,
        model="gcn",
        before=write_expert_on_graph,
    ),
}
