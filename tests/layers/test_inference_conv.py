"""The fused convolution computes the same by oneDNN's operator as by torch's, and leaves it where it must."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from zoo.layers.conv import ConvNorm, InferenceConv2d, ReLU6ConvNorm, SeparableConvNorm

onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")


def make(activation=None, groups=1, kernel=3, stride=1, bias=True):
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 16, kernel, stride, kernel // 2, groups=groups)
    return InferenceConv2d(conv, 3 * conv.weight.detach(), conv.bias.detach() if bias else None, activation)


def image(batch=2, size=(9, 7)):
    return torch.randn(batch, 12, *size).to(memory_format=torch.channels_last)[:, 2:10]


def plain(module, x):
    y = nn.functional.conv2d(x, module.weight, module.bias, module.stride, module.padding, 1, module.groups)
    return {"relu": y.relu(), "relu6": y.clamp(0, 6), None: y}[module.activation]


@onednn
@pytest.mark.parametrize("options", [{}, {"groups": 8}, {"kernel": 1}, {"stride": 2}, {"bias": False}], ids=str)
@pytest.mark.parametrize("activation", [None, "relu", "relu6"])
def test_equals_convolution_and_activation(activation, options):
    module = make(activation, **options)
    with torch.no_grad():
        for x in (image(), image().contiguous(), image(1), image(3, (4, 12)), image(1, (1, 1))):
            torch.testing.assert_close(module(x), plain(module, x), atol=1e-6, rtol=1e-5)
        assert module._laid_out is not None


@onednn
def test_changed_weights_are_laid_out_again():
    module, x = make("relu"), image()
    with torch.no_grad():
        before = module(x)
        module.weight.mul_(2)
        torch.testing.assert_close(module(x), plain(module, x), atol=1e-5, rtol=1e-5)
        module.load_state_dict(make("relu").state_dict())
        torch.testing.assert_close(module(x), before)
        module.weight = nn.Parameter(-module.weight)
        torch.testing.assert_close(module(x), plain(module, x), atol=1e-6, rtol=1e-5)
        module.weight.data = module.weight.data + 1
        torch.testing.assert_close(module(x), plain(module, x), atol=1e-5, rtol=1e-5)
        assert module.to(memory_format=torch.channels_last)._laid_out is None
        torch.testing.assert_close(module(x), plain(module, x), atol=1e-5, rtol=1e-5)


@onednn
def test_copies_and_pickles():
    module, x = make("relu"), image()
    with torch.inference_mode():
        expected = module(x)
        assert module._laid_out is not None
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        for other in (copy.deepcopy(module), torch.load(file, weights_only=False)):
            assert other._laid_out is None
            assert torch.equal(other(x), expected)


@pytest.mark.parametrize("where", ["gradients", "float64", "autocast", "counted", "switched off", "traced", "empty"])
def test_elsewhere_torch_computes_it(where, monkeypatch):
    module, x = make("relu"), image()
    if where == "gradients":
        module(x.requires_grad_()).sum().backward()
        assert x.grad is not None and module.weight.grad is not None
    elif where == "autocast":
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert module(x).dtype == torch.bfloat16
    elif where == "counted":
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            module(x)
        assert counter.get_total_flops() == 2 * 2 * 9 * 7 * 16 * 8 * 9
    else:
        if where == "switched off":
            monkeypatch.setattr(torch._C, "_get_mkldnn_enabled", lambda: False)
        if where == "traced":
            monkeypatch.setattr(torch.jit, "is_tracing", lambda: True)
        with torch.no_grad():
            x = {"float64": x.double(), "empty": x[:0]}.get(where, x)
            module = module.double() if where == "float64" else module
            torch.testing.assert_close(module(x), plain(module, x))
    assert module._laid_out is None


def test_compiled_programs_hold_torchs_operators():
    module, x = make("relu6"), image()
    with torch.no_grad():
        names = {str(node.target) for node in torch.export.export(module, (x,)).graph.nodes}
        assert not [name for name in names if "mkldnn" in name] and any("conv2d" in name for name in names)
        compiled = torch.compile(module, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), module(x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("layer", "activation"),
    [(ConvNorm(8, 16, 3, relu=True), "relu"), (ReLU6ConvNorm(8, 16), "relu6"), (ConvNorm(8, 16), None)],
    ids=lambda v: type(v).__name__,
)
def test_what_fuses_to_it(layer, activation):
    with torch.no_grad():
        nn.init.uniform_(layer.bn.running_var, 0.5, 2)
        nn.init.normal_(layer.bn.running_mean)
        expected = layer.eval()(image := torch.randn(2, 8, 5, 5))
        fused = layer.fuse()
        assert isinstance(fused, InferenceConv2d) and fused.activation == activation
        for x in (image, image.to(memory_format=torch.channels_last)):
            torch.testing.assert_close(fused(x), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_both_convolutions_of_a_separable_one():
    fused = SeparableConvNorm(8, 16).eval().fuse()
    assert [type(part) for part in fused.children()] == [InferenceConv2d, InferenceConv2d]
