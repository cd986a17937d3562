"""Images: data, networks, siamese augmentation, methods, and the task that they distil."""

from mmdistill.files.hub import HUB_PREFIX, has_images, on_hub
from mmdistill.image.augment import SiameseAugmentation
from mmdistill.image.data import ImageData
from mmdistill.image.datasets import accepts, load, shortcoming
from mmdistill.image.draw import EXPORTS, draw
from mmdistill.image.imports import IMPORTS
from mmdistill.image.joining import joined
from mmdistill.image.judges import is_added_judge
from mmdistill.image.known import DATASETS
from mmdistill.image.methods import METHODS, PRESETS, REDUCED, conditions
from mmdistill.image.methods.generative import DIGITS_LATENTS, generated, of_generator
from mmdistill.image.methods.taxonomy import TABLE_1
from mmdistill.image.models import MLP, VGG11, AlexNet, ConvNet, LeNet, ResNet, ViT, is_added
from mmdistill.image.protocols import PROTOCOLS
from mmdistill.image.storage import NUMBERED, PARAMETERIZATIONS
from mmdistill.image.task import ImageTask, image_task
from mmdistill.image.units import normalised, to_pixels
from mmdistill.registry import Domain

DOMAIN = Domain(
    name="image",
    budget="ipc",
    datasets=DATASETS,
    accepts=accepts,
    make_task=image_task,
    methods=METHODS,
    draw=draw,
    first="dm",
    exports=EXPORTS,
    imports=IMPORTS,
    accepted="a folder with one subfolder of images per class (perhaps under train/ and test/), a CSV or TSV table of "
    "labels and of image files beside it or pixels, IDX or CIFAR binary files, a .safetensors, .pt or .npz file with "
    "images and labels (and test_images and test_labels), or "
    f"{HUB_PREFIX}NAME[:CONFIGURATION] for a data set of the Hugging Face hub with a column of images",
    claims=lambda data: on_hub(data) and has_images(data),
    presets=PRESETS,
    reduced=REDUCED,
    options=("protocol", "whiten", "size", "mirror", "augment", "model", "judge_batch", "judge_precision", "teacher"),
    protocols={name: protocol.line() for name, protocol in PROTOCOLS.items()},
    taxonomy=TABLE_1,
    conditions=conditions,
    shortcoming=shortcoming,
    network_added=lambda name: is_added(name) or is_added_judge(name),
    parameterizations={**PARAMETERIZATIONS, "gan-latents": generated(within_budget=False)},
    families=NUMBERED,
    storages={"digits": {"gan-latents": DIGITS_LATENTS}},
)

__all__ = [
    "DOMAIN",
    "METHODS",
    "MLP",
    "VGG11",
    "AlexNet",
    "ConvNet",
    "ImageData",
    "ImageTask",
    "LeNet",
    "ResNet",
    "SiameseAugmentation",
    "ViT",
    "image_task",
    "joined",
    "load",
    "normalised",
    "of_generator",
    "to_pixels",
]
