import pytest
import torch
from torch import Tensor, nn

from mmdistill.errors import ConfigError, ShapeError, UnsupportedError
from mmdistill.image.models import (
    JUDGING_NETWORKS,
    MLP,
    ConvNet,
    LeNet,
    convnet_depth,
    fitting_models,
    model_factory,
    model_name,
    parse_model,
)
from mmdistill.image.models.layers import ACTIVATIONS, AveragePool2d, BatchNorm2d, Convolution, InstanceNorm, Norm
from mmdistill.networks.module import FunctionalModule
from mmdistill.networks.stacked import stack_states
from mmdistill.runtime import Draws
from mmdistill.task import NetworkState, Tensors


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


FAMILIES = [
    "convnet",
    "freponet-bn",
    "mlp",
    "lenet",
    "alexnet",
    "alexnet-in",
    "vgg11-bn",
    "resnet18",
    "resnet50-bn",
    "vit",
]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 36)])
def test_every_network_gives_logits_and_features(name: str, shape: tuple[int, int, int]) -> None:
    factory = model_factory(name, shape, 5, width=4)
    network = FunctionalModule(factory, factory().feature_names)  # type: ignore[arg-type]
    state = network.init(Draws(0))
    x = torch.randn(3, *shape)
    logits, _ = network(state, x)
    assert logits.shape == (3, 5)
    layers = network.features(state, x)
    assert len(layers) == len(network.feature_names)
    head = state.params["classifier.weight"], state.params["classifier.bias"]
    if name != "vit":  # whose embedding is the mean over tokens, taken after the last named layer
        torch.testing.assert_close(nn.functional.linear(layers[-1], *head), logits)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("lenet", 62_006),
        ("alexnet", 1_872_202),
        ("alexnet-bn", 1_874_122),
        ("vgg11", 9_231_114),
        ("resnet18", 11_173_962),
        ("resnet34", 21_282_122),
        ("resnet50", 23_520_842),
        ("resnet101", 42_512_970),
        ("resnet152", 58_156_618),
    ],
)
def test_sizes_of_the_field(name: str, size: int) -> None:
    with torch.device("meta"):
        assert count(model_factory(name, (3, 32, 32), 10)()) == size


def test_size_of_the_mlp() -> None:
    assert count(MLP((1, 28, 28), 10)) == 118_282
    assert count(LeNet((1, 28, 28), 10)) == 61_706


def test_options_make_the_network_that_they_name() -> None:
    network = model_factory("ConvNet_LN-d2-leakyrelu-maxpool-w4-x2", (3, 16, 16), 5)()
    kinds = [type(module) for block in (network.block1, network.block2) for module in block]  # type: ignore[union-attr]
    assert kinds == [Convolution, nn.LayerNorm, nn.LeakyReLU, nn.MaxPool2d] * 2
    assert network.get_submodule("block2.0").out_channels == 8
    assert network.get_submodule("classifier").in_features == 8 * 4 * 4
    flat = model_factory("convnet-nopool-nn-sigmoid-d1-w2", (1, 8, 8), 5)()
    assert flat.get_submodule("classifier").in_features == 2 * 8 * 8


def test_a_network_has_one_name() -> None:
    assert model_name("convnet-BN-w64-d4") == "convnet-d4-w64-bn"
    assert model_name("convnet-in") == model_name("convnet-avgpool-relu") == "convnet"
    assert model_name("alexnet-nn") == "alexnet"
    assert parse_model("resnet18-bn") == ("resnet18", {"norm": "batch"})
    assert [model_name(name) for name in JUDGING_NETWORKS] == list(JUDGING_NETWORKS)


@pytest.mark.parametrize("name", ["mlp-d2-w128", "vit-w128-d4", "lenet-w6", "alexnet-w128-nn", "vgg11-in-w64"])
def test_options_that_are_the_default_are_no_part_of_a_name(name: str) -> None:
    family = name.split("-")[0]
    assert model_name(name) == model_name(name, shape=(3, 32, 32)) == family
    plain, spelled = (model_factory(own, (3, 32, 32), 10)() for own in (family, name))
    assert repr(plain) == repr(spelled)


def test_the_default_depth_and_width_of_convnets_are_those_of_the_images_size() -> None:
    assert model_name("convnet-d3-w128") == "convnet-d3-w128"  # the default of some images alone
    assert model_name("convnet-d3-w128", shape=(1, 28, 28)) == "convnet"
    assert model_name("convnet-d3-w128", shape=(1, 8, 8)) == "convnet-d3-w128"
    assert model_name("freponet-d2-w32-nn", shape=(1, 8, 8)) == "freponet"
    assert model_name("convnet-w32-x2", shape=(3, 32, 32)) == "convnet-w32-x2"
    for shape in ((1, 8, 8), (1, 28, 28), (3, 64, 64)):
        network = model_factory("convnet", shape, 10)()
        full = f"convnet-d{network.depth}-w{network.get_submodule('block1.0').out_channels}-in-relu-avgpool"
        assert model_name(full, shape=shape) == "convnet"


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="did you mean 'convnet'"):
        model_factory("konvnet", (1, 8, 8), 10)
    with pytest.raises(ConfigError, match="unknown option 'q5'"):
        model_factory("convnet-q5", (1, 8, 8), 10)
    with pytest.raises(ConfigError, match="lenet takes no norm"):
        model_factory("lenet-bn", (1, 28, 28), 10)
    with pytest.raises(ConfigError, match="sets its norm twice"):
        model_factory("convnet-bn-in", (1, 28, 28), 10)
    with pytest.raises(ConfigError, match="width is given twice"):
        model_factory("convnet-w8", (1, 28, 28), 10, width=4)
    with pytest.raises(ConfigError, match="no norm 'layer' here"):
        model_factory("resnet18-ln", (3, 32, 32), 10)()
    with pytest.raises(ConfigError, match="multiple of it, got 6"):
        model_factory("convnet-gn-w6", (3, 32, 32), 10)()
    with pytest.raises(ConfigError, match="multiple of 4"):
        model_factory("vit-w6", (3, 32, 32), 10)()
    for name in ("convnet-w0", "convnet-d0", "mlp-w0"):
        with pytest.raises(ConfigError, match="at least 1"):
            model_factory(name, (1, 28, 28), 10)()
    with pytest.raises(ShapeError, match="vanish"):
        ConvNet((1, 8, 8), 10, depth=4)
    for name in ("lenet", "resnet18", "alexnet"):
        with pytest.raises(UnsupportedError, match="at least 16 x 16"):
            model_factory(name, (1, 8, 8), 10)
    with pytest.raises(UnsupportedError, match="patches of 4"):
        model_factory("vit", (3, 30, 30), 10)


def test_judges_that_fit_the_images() -> None:
    assert fitting_models((1, 8, 8)) == ("convnet", "convnet-nn", "mlp", "vit")
    assert fitting_models((1, 28, 28)) == fitting_models((3, 32, 32)) == JUDGING_NETWORKS
    assert "vgg11" not in fitting_models((3, 28, 28))
    assert "vit" not in fitting_models((3, 30, 30))


def test_average_pooling_equals_torchs() -> None:
    x = torch.randn(2, 3, 7, 6, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(AveragePool2d()(x), nn.functional.avg_pool2d(x, 2))
    assert torch.autograd.gradgradcheck(AveragePool2d(), (x,))


@pytest.mark.parametrize(
    ("shape", "norm"), [((1, 28, 28), "instance"), ((3, 8, 8), "instance"), ((1, 13, 17), "batch"), ((1, 8, 8), "none")]
)
def test_what_is_compiled_for_a_cpu_equals_torchs_layers_twice_differentiated(
    shape: tuple[int, int, int], norm: Norm, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = ConvNet(shape, 3, width=4, norm=norm).double().eval()
    parameters = list(network.parameters())
    images = torch.randn(5, *shape, dtype=torch.float64) + 4

    def derivatives() -> list[Tensor]:
        inputs = images.clone().requires_grad_()
        logits = network(inputs)
        loss = (logits.softmax(1) * torch.arange(3)).sum()
        first = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
        second = torch.autograd.grad(sum((g * g.detach().cos()).sum() for g in first), inputs)  # type: ignore[arg-type]
        return [logits, *first, *second]

    torchs = derivatives()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(derivatives(), torchs, rtol=1e-10, atol=1e-12)


def test_instance_norm_compiled_for_a_cpu_is_exact_where_the_mean_is_large_or_nothing_varies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    x = 1000 + torch.randn(4, 2, 8, 8)
    x[:, :, 4] -= 100  # the middle row, about which moments are taken, is no sample of the rest
    truth = nn.GroupNorm(2, 2).double()(x.double())
    torch.testing.assert_close(InstanceNorm(2)(x).double(), truth, rtol=0, atol=2e-4)
    assert torch.equal(InstanceNorm(2)(torch.full((1, 2, 8, 8), 7.3)), torch.zeros(1, 2, 8, 8))


def test_batch_norm_equals_torchs_and_is_batched_over_networks() -> None:
    mine, torchs = BatchNorm2d(4).double(), nn.BatchNorm2d(4).double()
    x = torch.randn(6, 4, 3, 3, dtype=torch.float64) * 2 + 1
    for _ in range(2):
        torch.testing.assert_close(mine(x), torchs(x))
    torch.testing.assert_close(mine.running_mean, torchs.running_mean)
    torch.testing.assert_close(mine.running_var, torchs.running_var)
    torch.testing.assert_close(mine.eval()(x), torchs.eval()(x))


@pytest.mark.parametrize("name", ["convnet-bn-w4-d2", "vit-w8-d1"])
def test_networks_are_batched_with_gradients_and_buffers(name: str) -> None:
    network = FunctionalModule(model_factory(name, (3, 8, 8), 5))
    states = [network.init(Draws(index)) for index in range(2)]
    x = torch.randn(6, 3, 8, 8)

    def loss(params: Tensors, buffers: Tensors) -> tuple[torch.Tensor, Tensors]:
        output, updated = network(NetworkState(params, buffers), x, train=True)
        return -output.log_softmax(-1)[:, 0].mean(), updated

    gradient = torch.func.grad(loss, has_aux=True)
    stacked = torch.func.vmap(gradient)(*stack_states(states))
    for index, state in enumerate(states):
        leaves = {key: p.clone().requires_grad_() for key, p in state.params.items()}
        value, buffers = loss(leaves, dict(state.buffers))
        alone = torch.autograd.grad(value, list(leaves.values()))
        for key, expected in zip(leaves, alone, strict=True):
            torch.testing.assert_close(stacked[0][key][index], expected, atol=2e-6, rtol=1e-4)
        for key, expected in buffers.items():
            torch.testing.assert_close(stacked[1][key][index], expected)
    if "bn" in name:
        assert float(stacked[1]["block1.1.running_mean"].abs().sum()) > 0
        assert not bool(states[0].buffers["block1.1.running_mean"].any())


def test_frepo_network_normalises_before_it_convolves() -> None:
    network = model_factory("freponet-w4-bn", (1, 28, 28), 10)()
    network.train()
    x = torch.rand(5, 1, 28, 28)
    expected, statistics = x, []
    for block in (1, 2, 3):
        part = network.get_submodule(f"block{block}")
        if block > 1:
            mean, var = expected.mean((0, 2, 3)), expected.var((0, 2, 3), correction=0)
            statistics.append((mean, expected.var((0, 2, 3))))
            expected = (expected - mean.view(-1, 1, 1)) / (var.view(-1, 1, 1) + 1e-5).sqrt()
        weight, bias = part[1].weight, part[1].bias  # type: ignore[index]
        assert weight.shape[0] == 4 * 2 ** (block - 1)
        expected = nn.functional.conv2d(expected, weight, bias, padding=3 if block == 1 else 1).relu()
        expected = nn.functional.avg_pool2d(expected, 2)
    expected = nn.functional.linear(expected.flatten(1), network.classifier.weight, network.classifier.bias)  # type: ignore[union-attr, arg-type]
    torch.testing.assert_close(network(x), expected)
    for block, (mean, var) in zip((2, 3), statistics, strict=True):
        norm = network.get_submodule(f"block{block}.0")
        torch.testing.assert_close(norm.running_mean, 0.9 * mean)  # nine tenths of the batch, one of the start at 0
        torch.testing.assert_close(norm.running_var, 0.9 * var + 0.1)


def test_a_softplus_is_a_relu_with_a_round_kink() -> None:
    assert model_name("freponet-softplus-w8") == "freponet-w8-softplus"
    rounded, sharp = (model_factory(f"freponet-w4-{name}", (1, 28, 28), 10)() for name in ("softplus", "relu"))
    sharp.load_state_dict(rounded.state_dict())
    x = torch.rand(5, 1, 28, 28)
    assert 0 < float((rounded(x) - sharp(x)).detach().abs().max()) < 0.1
    (layer,) = {type(module) for module in rounded.modules()} & set(ACTIVATIONS.values())
    values = torch.linspace(-1, 1, 9, dtype=torch.float64)
    torch.testing.assert_close(layer()(values), (1 + (60 * values).exp()).log() / 60)


def test_frepo_network_starts_by_lecun() -> None:
    factory = model_factory("freponet-w64", (3, 32, 32), 10)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in factory().modules())
    state = FunctionalModule(factory, factory().feature_names).init(Draws(1))  # type: ignore[arg-type]
    for name, tensor in state.params.items():
        if name.endswith("bias"):
            assert not tensor.any()
            continue
        wanted = tensor[0].numel() ** -0.5
        assert float(tensor.std()) == pytest.approx(wanted, rel=0.05)
        assert float(tensor.abs().max()) < 2.001 * wanted / 0.8796  # cut at two deviations
    again = FunctionalModule(factory).init(Draws(1)).params
    assert all(torch.equal(again[name], tensor) for name, tensor in state.params.items())
    with pytest.raises(UnsupportedError, match="vanish in 6 poolings; a depth of 5 fits"):
        model_factory("freponet-d6", (3, 32, 32), 10)()
    with pytest.raises(ConfigError, match="at least 1"):
        model_factory("freponet", (3, 32, 32), 10, width=0)()
    with pytest.raises(ConfigError, match="takes no doubling"):
        model_name("freponet-x2")
