"""PC-DARTS: counts and costs of the published networks, a cell written out, the auxiliary head, names, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import zoo
from zoo.layers import Cell
from zoo.layers.conv.cell import FactorizedReduce
from zoo.train.tasks import ImageClassification
from zoo.vision.pcdarts import CIFAR_NORMAL, CIFAR_REDUCE

TINY = {"dims": (16, 32, 64), "depths": (2, 3, 3), "stem_dim": 12, "img_size": 32, "in_chans": 3}  # 8 cells


@pytest.mark.parametrize(
    ("name", "with_auxiliary", "mega_macs"),
    [("pcdarts_cifar", 4_111_104, 556.67), ("pcdarts_imagenet", 6_603_240, 581.63)],
)
def test_counts_of_the_authors_networks(name, with_auxiliary, mega_macs):
    model: Any = zoo.create_model(name, device="meta", auxiliary_weight=0.4)
    assert sum(p.numel() for p in model.parameters()) == with_auxiliary
    counter = FlopCounterMode(display=False)
    with counter:
        model.eval()(torch.empty(1, 3, *model.config.image_shape, device="meta"))
    assert counter.get_total_flops() / 2e6 == pytest.approx(mega_macs, abs=0.005)
    assert model.pool_size == ((8, 8) if name == "pcdarts_cifar" else (7, 7))


@pytest.mark.parametrize("edges", [CIFAR_NORMAL, CIFAR_REDUCE], ids=["normal", "reduce"])
@pytest.mark.parametrize("reduction", [False, True])
def test_cell_written_out(edges, reduction):
    cell = Cell((6, 5), 4, edges, reduction=reduction).double().eval()
    first, second = torch.randn(2, 6, 8, 8, dtype=torch.float64), torch.randn(2, 5, 8, 8, dtype=torch.float64)
    nodes = [cell.preprocess0(first), cell.preprocess1(second)]
    for node in range(4):
        incoming = [(edges[2 * node + i], cell.ops[2 * node + i]) for i in range(2)]
        for (name, source), op in incoming:
            strides = {
                m.stride if isinstance(m.stride, int) else m.stride[0] for m in op.modules() if hasattr(m, "stride")
            }
            assert (2 in strides) == (reduction and source < 2)
            assert name != "skip_connect" or reduction or isinstance(op, torch.nn.Identity)
        nodes.append(sum(op(nodes[source]) for (_, source), op in incoming))
    passed, found = cell((first, second))
    assert passed is second and found.shape == (2, 16, 4 if reduction else 8, 4 if reduction else 8)
    torch.testing.assert_close(found, torch.cat(nodes[2:], dim=1))


@pytest.mark.parametrize("side", [8, 7])
def test_factorised_reduction_takes_even_and_odd_pixels(side):
    layer = FactorizedReduce(1, 2).double().eval()
    x = torch.rand(1, 1, side, side, dtype=torch.float64)
    even, odd = layer(x)[0] * (1 + layer.even.bn.eps) ** 0.5
    torch.testing.assert_close(even, layer.even.conv.weight.item() * x[0, 0, ::2, ::2])
    inner = odd[: side // 2, : side // 2]
    torch.testing.assert_close(inner, layer.odd.conv.weight.item() * x[0, 0, 1::2, 1::2])
    assert odd.shape == even.shape and (side == 8 or not odd[-1].any())


def test_drop_path_spares_the_identity():
    edges = [("skip_connect", 0), ("sep_conv_3x3", 1)]
    cell = Cell((4, 4), 4, edges, drop_path=0.999).train()
    x = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(cell(x)[1], cell.preprocess0(x[0]))


def test_the_auxiliary_head_trains_with_the_task_and_goes_when_fused():
    model: Any = zoo.create_model("pcdarts_nano", auxiliary_weight=0.4, **TINY)
    task = ImageClassification(model)
    task.configure_model()
    images, targets = torch.randn(4, 3, 32, 32), torch.arange(4)
    task.log_training = lambda loss, **_: loss
    loss = task.training_step((images, targets), 0)
    weight, logits = model.auxiliary_logits
    assert weight == 0.4 and logits.shape == (4, 10)
    loss.backward()
    assert all(p.grad is not None for p in model.auxiliary_head.parameters())
    model.reset_classifier(7)
    model.train()(images)
    assert model.auxiliary_logits[1].shape == (4, 7)
    expected, fused = model.eval()(images), model.fuse()
    assert fused.auxiliary_head is None
    torch.testing.assert_close(fused(images), expected, atol=1e-5, rtol=1e-5)


def test_names_of_the_authors():
    names = {
        "stem.0.weight": "stages.0.downsample.0.conv.weight",
        "stem1.2.running_var": "stages.0.downsample.2.bn.running_var",
        "cells.0.preprocess0.op.1.weight": "stages.0.blocks.0.preprocess0.conv.conv.weight",
        "cells.5.preprocess1.op.2.bias": "stages.0.blocks.5.preprocess1.conv.bn.bias",
        "cells.7.preprocess0.conv_2.weight": "stages.1.blocks.1.preprocess0.odd.conv.weight",
        "cells.6._ops.0.op.7.running_mean": "stages.1.blocks.0.ops.0.pointwise.1.bn.running_mean",
        "cells.13._ops.3.op.5.weight": "stages.2.blocks.0.ops.3.depthwise.1.weight",
        "cells.19.preprocess0.op.1.weight": "stages.2.blocks.6.preprocess0.conv.conv.weight",
        "classifier.bias": "head.bias",
        "auxiliary_head.features.2.weight": "auxiliary_head.reduce.conv.weight",
        "auxiliary_head.features.3.running_var": "auxiliary_head.reduce.bn.running_var",
        "auxiliary_head.features.5.weight": "auxiliary_head.conv.weight",
        "auxiliary_head.features.6.bias": "auxiliary_head.norm.bias",
        "auxiliary_head.classifier.weight": "auxiliary_head.classifier.weight",
    }
    tensors = {f"module.{key}": torch.zeros(1) for key in names}
    assert list(zoo.checkpoints.convert.to_zoo(tensors)) == list(names.values())
    halves = zoo.checkpoints.convert.to_zoo(tensors | {"module.cells.19._ops.7.bn.weight": torch.tensor([1.0, 2.0])})
    place = "stages.2.blocks.6.ops.7"
    assert (halves[f"{place}.even.bn.weight"], halves[f"{place}.odd.bn.weight"]) == (1, 2)


def test_a_file_in_the_authors_layout_loads(tmp_path):
    """All tensors of a network of 8 cells under the published names, which the test writes out from the genotype."""
    model: Any = zoo.create_model("pcdarts_nano", auxiliary_weight=0.4, **TINY)
    ours = model.state_dict()
    published = {}
    for key, tensor in ours.items():
        for stage, start in enumerate((0, 2, 5)):
            for block in range(3):
                key = key.replace(f"stages.{stage}.blocks.{block}.", f"cells.{start + block}.")
        for new, old in (
            (".ops.", "._ops."), ("stages.0.downsample.0.conv", "stem.0"),
            ("stages.0.downsample.0.bn", "stem.1"), ("depthwise.0", "op.1"), ("pointwise.0.conv", "op.2"),
            ("pointwise.0.bn", "op.3"), ("depthwise.1", "op.5"), ("pointwise.1.conv", "op.6"),
            ("pointwise.1.bn", "op.7"), ("conv.conv", "op.1"), ("conv.bn", "op.2"), ("even", "conv_1"),
            ("odd", "conv_2"),
            ("y_head.reduce.conv", "y_head.features.2"), ("y_head.reduce.bn", "y_head.features.3"),
            ("y_head.conv.", "y_head.features.5."), ("y_head.norm", "y_head.features.6"),
        ):  # fmt: skip
            key = key.replace(new, old)
        key = key.replace("head.", "classifier.") if key.startswith("head.") else key
        if key.endswith(("conv_1.bn.num_batches_tracked", "conv_2.bn.num_batches_tracked")):
            published[key.replace("conv_1.", "").replace("conv_2.", "")] = tensor
        elif ".conv_1.bn." in key:
            published[key.replace("conv_1.", "")] = torch.rand(2 * len(tensor))
        elif ".conv_2.bn." not in key:
            key = key.replace("conv_1.conv", "conv_1").replace("conv_2.conv", "conv_2")
            published[key] = torch.rand(tensor.shape) if tensor.is_floating_point() else tensor
    torch.save(published, tmp_path / "weights.pt")
    loaded: Any = zoo.create_model("pcdarts_nano", checkpoint_path=tmp_path / "weights.pt", **TINY)

    def total(tensors: Any) -> float:
        return sum(t.double().sum() for t in tensors if t.is_floating_point())

    assert total(loaded.state_dict().values()) == pytest.approx(total(published.values()))
    assert loaded.config.auxiliary_weight == 0.4
    plain: Any = zoo.create_model("pcdarts_nano", checkpoint_path=tmp_path / "weights.pt", auxiliary_weight=0.0, **TINY)
    images = torch.randn(2, 3, 32, 32)
    assert plain.auxiliary_head is None and torch.equal(plain.eval()(images), loaded.eval()(images))
    op = loaded.stages[1].blocks[1].ops[0].pointwise[1]
    assert torch.equal(op.bn.weight, published["cells.3._ops.0.op.7.weight"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normal": (("sep_conv_7x7", 0), ("skip_connect", 1))}, r"unknown operations \['sep_conv_7x7'\]; a cell is"),
        ({"normal": (("sep_conv_3x3", 2), ("skip_connect", 1))}, r"too late \[\('sep_conv_3x3', 2\)\]"),
        ({"reduce": (("sep_conv_3x3", 0),)}, "two edges a node, each from an earlier node.*got 1 edges"),
        ({"dims": (66, 128)}, "dims must be multiples of the 4 nodes"),
        ({"stem_strides": (2, 2)}, "stem_strides must hold 1 stride, or 3"),
        ({"auxiliary_weight": -1.0}, "auxiliary_weight at least 0"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        zoo.create_model("pcdarts_nano", **options)
