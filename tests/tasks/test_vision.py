"""The networks for images: one image at a time, FLOPs as torch counts them, roles as routing finds them."""

import doctest
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from muonlab.optim.routing import route
from muonlab.roles import Role
from muonlab.tasks import vision
from muonlab.tasks.vision import MOST_PATCHES, VisionConfig, VisionNetwork

SHAPES = (
    {"model": "resnet"},
    {"model": "resnet", "depth": 2, "width": 12, "image": (3, 15, 11)},
    {"model": "vit"},
    {"model": "vit", "depth": 3, "width": 32, "image": (3, 12, 8), "patch_size": 4},
    {"model": "cnn"},
    {"model": "cnn", "depth": 2, "width": 6, "image": (3, 15, 11)},
)
each = pytest.mark.parametrize("shape", SHAPES)


def make(**shape):
    torch.manual_seed(0)
    config = VisionConfig(**{"image": (1, 8, 8), "num_classes": 5, **shape})
    return VisionNetwork(config, (0.3,) * config.image[0], (0.2,) * config.image[0])


def pixels(model, count=4):
    return torch.rand(count, *model.config.image, generator=torch.Generator().manual_seed(1))


@each
def test_a_batch_of_images_is_the_images_one_by_one(shape):
    for model in (make(**shape), make(**shape).eval()):
        batch = pixels(model)
        alone = torch.cat([model(batch[i : i + 1]) for i in range(len(batch))])
        torch.testing.assert_close(model(batch), alone, atol=1e-6, rtol=1e-5)
        assert alone.shape == (4, 5) and (alone[0] - alone[1]).abs().max() > 1e-4


@each
def test_gradient_reaches_every_parameter(shape):
    model = make(**shape)
    F.cross_entropy(model(pixels(model)), torch.tensor([0, 1, 2, 3])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@each
def test_flops_are_those_that_torch_counts(shape):
    model = make(**shape)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(pixels(model)), torch.tensor([0, 1, 2, 3])).backward()
    assert model.flops_per_image() == counter.get_total_flops() / 4


@each
def test_roles_are_those_that_routing_finds(shape):
    model = make(**shape)
    roles = model.roles()
    assert roles == {found.name: found.role for found in route(model)}
    assert roles["head.weight"] is Role.HEAD and roles["head.bias"] is Role.VECTOR
    kernels = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    assert {f"{name}.weight" for name in kernels} == {name for name, role in roles.items() if role is Role.CONV}
    assert bool(kernels) == (shape["model"] != "vit") and (Role.EMBEDDING in roles.values()) == (not kernels)


def test_stages_halve_the_image_and_double_the_width():
    model = make(image=(3, 32, 32), width=4, depth=2)
    x, widths = model.stem(pixels(model, 1)), []
    for block in model.blocks:
        x = block(x)
        widths.append(tuple(x.shape[1:]))
    sizes = [(4, 32, 32), (8, 16, 16), (16, 8, 8), (32, 4, 4)]
    assert widths == [size for size in sizes for _ in range(2)] and model.head.in_features == 32


def test_a_residual_network_of_width_64_and_depth_2_is_resnet_18():
    """Convolutions of the published one for CIFAR: a stem, 16 in blocks, 3 shortcuts; 11.17 million parameters."""
    model = make(image=(3, 32, 32), num_classes=10, width=64, depth=2)
    kernels = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert len(kernels) == 20 and sum(kernel.kernel_size == (1, 1) for kernel in kernels) == 3
    assert sum(kernel.weight.numel() for kernel in kernels) == 11_159_232


def test_a_residual_block_without_its_last_convolution_changes_nothing():
    block = make(depth=2).blocks[1]
    block.conv2.weight.data.zero_()
    x = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    assert block.shortcut is None and torch.equal(block(x), x)


def test_patches_are_squares_of_the_image_in_order():
    model = make(model="vit", image=(3, 8, 12), patch_size=4)
    nn.init.zeros_(model.stem.positions)
    image = pixels(model, 1)
    tokens = model.stem(image)
    assert tokens.shape == (1, 6, 64)
    for place, (y, x) in enumerate((y, x) for y in (0, 4) for x in (0, 4, 8)):
        torch.testing.assert_close(tokens[0, place], model.stem.patch(image[0, :, y : y + 4, x : x + 4].flatten()))


def test_patches_see_each_other_both_ways_and_know_their_place():
    model = make(model="vit")
    tokens = model.stem(pixels(model, 1)).detach().requires_grad_()
    for target in (0, 15):
        (gradient,) = torch.autograd.grad(model.blocks[0].attention(tokens)[0, target].sum(), tokens)
        assert (gradient[0].abs().sum(-1) > 0).all()
    assert (model.stem.positions.std() - 0.02).abs() < 0.002
    nn.init.normal_(model.stem.positions)
    image = pixels(model, 1)
    moved = image.roll(4, dims=-1)
    assert (model(image) - model(moved)).abs().max() > 1e-4


@pytest.mark.parametrize("side", [8, 28, 32, 64, 96])
def test_patches_are_the_smallest_that_are_not_too_many(side):
    patch = VisionConfig(image=(3, side, side), num_classes=2, model="vit").patch
    assert side % patch == 0 and (side // patch) ** 2 <= MOST_PATCHES
    smaller = [p for p in range(2, patch) if side % p == 0]
    assert all((side // p) ** 2 > MOST_PATCHES for p in smaller)


def test_initial_scales():
    model = make(image=(3, 32, 32), width=64, depth=2)
    assert model.stem.weight.std().item() == pytest.approx(math.sqrt(2 / 27), rel=0.05)
    first, second = model.blocks[0].conv1.weight, model.blocks[0].conv2.weight
    assert first.std().item() == pytest.approx(math.sqrt(2 / 576), rel=0.02)
    assert second.std().item() == pytest.approx(math.sqrt(2 / 576 / 8), rel=0.02)  # eight branches
    assert model.head.weight.std().item() == pytest.approx(512**-0.5, rel=0.05) and not model.head.bias.any()
    vit = make(model="vit", width=128)
    assert vit.blocks[0].attention.q.weight.std().item() == pytest.approx(128**-0.5, rel=0.03)
    assert vit.blocks[0].attention.o.weight.std().item() == pytest.approx(128**-0.5 / 2, rel=0.03)  # four branches


@each
def test_pixels_are_standardised_by_what_is_given(shape):
    model = make(**shape)
    batch = pixels(model)
    before = model(batch)
    model.mean, model.deviation = model.mean * 0, model.deviation * 0 + 1
    torch.testing.assert_close(model((batch - 0.3) / 0.2), before, atol=1e-5, rtol=1e-4)


@each
def test_runs_under_autocast_and_in_bf16(shape):
    model = make(**shape)
    full = model(pixels(model))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(pixels(model)).float(), full, atol=0.02, rtol=0.1)
    torch.testing.assert_close(model.bfloat16()(pixels(model).bfloat16()).float(), full, atol=0.03, rtol=0.1)


def test_doctests():
    assert doctest.testmod(vision).failed == 0
