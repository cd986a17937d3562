import pytest
import torch
from torch import nn

from mmdistill.errors import ConfigError, ShapeError, UnsupportedError
from mmdistill.image.models import MLP, ConvNet, LeNet, ResNet18, convnet_depth, fitting_models, model_factory
from mmdistill.networks.module import FunctionalModule
from mmdistill.runtime import Draws


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_convnet_has_the_published_number_of_parameters() -> None:
    assert count(ConvNet((3, 32, 32), 10)) == 320_010


def test_mnist_is_padded_to_32_pixels_in_the_first_layer() -> None:
    network = ConvNet((1, 28, 28), 10)
    assert network.get_submodule("block1.0").padding == (3, 3)
    assert network.classifier.in_features == 128 * 4 * 4
    assert ConvNet((3, 28, 28), 10).classifier.in_features == 128 * 3 * 3


@pytest.mark.parametrize(("side", "depth"), [(8, 2), (16, 2), (28, 3), (32, 3), (64, 4), (128, 5)])
def test_depth_follows_the_image_size(side: int, depth: int) -> None:
    assert convnet_depth(side, side) == depth
    assert ConvNet((1, side, side), 10, width=4).depth == depth


def test_instance_norm_is_one_affine_group_per_channel() -> None:
    norms = [m for m in ConvNet((3, 32, 32), 10, width=8).modules() if isinstance(m, nn.GroupNorm)]
    assert [(m.num_groups, m.num_channels, m.affine) for m in norms] == [(8, 8, True)] * 3
    assert any(isinstance(m, nn.BatchNorm2d) for m in ConvNet((3, 8, 8), 2, norm="batch").modules())
    assert not any(isinstance(m, nn.GroupNorm) for m in ConvNet((3, 8, 8), 2, norm="none").modules())


@pytest.mark.parametrize("name", ["convnet", "mlp", "lenet", "resnet18"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 16, 20)])
def test_every_network_gives_logits_and_features(name: str, shape: tuple[int, int, int]) -> None:
    factory = model_factory(name, shape, 5, width=6)
    network = FunctionalModule(factory, factory().feature_names)  # type: ignore[arg-type]
    state = network.init(Draws(0))
    x = torch.randn(3, *shape)
    logits, _ = network(state, x)
    assert logits.shape == (3, 5)
    layers = network.features(state, x)
    assert len(layers) == len(network.feature_names)
    head = state.params["classifier.weight"], state.params["classifier.bias"]
    torch.testing.assert_close(nn.functional.linear(layers[-1], *head), logits)


def test_sizes_of_the_field() -> None:
    assert count(LeNet((3, 32, 32), 10)) == 62_006
    assert count(ResNet18((3, 32, 32), 10)) == 11_173_962
    assert count(MLP((1, 28, 28), 10)) == 118_282


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="did you mean 'convnet'"):
        model_factory("konvnet", (1, 8, 8), 10)
    with pytest.raises(ConfigError, match="unknown norm"):
        ConvNet((1, 8, 8), 10, norm="layer")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="width"):
        ConvNet((1, 8, 8), 10, width=0)
    with pytest.raises(ShapeError, match="vanish"):
        ConvNet((1, 8, 8), 10, depth=4)
    for network in (LeNet, ResNet18):
        with pytest.raises(UnsupportedError, match="at least 16 x 16"):
            network((1, 8, 8), 10)
    assert fitting_models((1, 8, 8)) == ("convnet", "mlp")
    assert fitting_models((3, 32, 32)) == ("convnet", "mlp", "lenet", "resnet18")
