"""Reversible blocks: exact backwards, kept bytes that do not grow with depth, and decoding as any model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from zoo.train.memory import lean
from zoo.train.memory.count import saved_bytes

TEXT = torch.randint(0, 255, (2, 24), generator=torch.Generator().manual_seed(0))


def built(name: str = "transformer_nano", **options: Any) -> Any:
    torch.manual_seed(0)
    return zoo.create_model(name, changes=[{"kind": "reversible"}], **options).train()


def gradients(model: Any) -> list[Tensor]:
    model.zero_grad()
    model(TEXT, labels=TEXT).backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("name", ["transformer_nano", "mamba2_nano", "gla_nano"])
def test_gradients_and_decoding(name):
    model = built(name, dtype=torch.float64, depth=3)
    expected = gradients(model)
    memory = lean(model, "reversible")
    for _ in range(2):
        for found, wanted in zip(gradients(model), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    memory.remove()
    with torch.no_grad():
        whole, state = model.eval()(TEXT), model.init_state(2)
        steps = torch.cat([model(TEXT[:, :9], state), *(model(TEXT[:, t : t + 1], state) for t in range(9, 24))], 1)
    torch.testing.assert_close(steps, whole, rtol=1e-9, atol=1e-9)


def test_low_precision_is_near():
    """The streams are wide, whatever the weights are."""
    model = built(dtype=torch.bfloat16, depth=6)
    expected = gradients(model)
    lean(model, "reversible")
    for found, wanted in zip(gradients(model), expected, strict=True):
        assert (found - wanted).norm() <= 0.02 * wanted.norm()


def test_kept_bytes_do_not_grow_with_depth():
    found = {}
    for depth in (2, 12):
        for kind in (None, "reversible"):
            model = built(depth=depth, dim=32, mlp_dim=96)
            if kind:
                lean(model, kind)
            found[depth, kind] = saved_bytes(model, lambda model=model: model(TEXT, labels=TEXT))
    assert found[12, "reversible"] == found[2, "reversible"]
    assert found[12, None].between > 4 * found[2, None].between > 4 * found[2, "reversible"].between


def test_a_volume_network_that_stores_is_made_to_compute_again():
    model: Any = zoo.create_model("revunet3d_nano", dtype=torch.float64, reversible=False).train()
    x = torch.randn(1, 1, 16, 16, 16, dtype=torch.float64)
    stored = saved_bytes(model, lambda: model(x).square().mean())
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    memory = lean(model, "reversible")
    model.zero_grad()
    assert saved_bytes(model, lambda: model(x).square().mean()).between < 0.5 * stored.between
    for parameter, wanted in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-9, atol=1e-10)
    memory.remove()
    assert saved_bytes(model, lambda: model(x).square().mean()) == stored


def test_it_is_saved_and_made_again(tmp_path):
    model = built(depth=2).eval()
    zoo.save_model(model, tmp_path)
    again: Any = zoo.create_model(f"local-dir:{tmp_path}").eval()
    assert torch.equal(again(TEXT), model(TEXT))
    plain: Any = zoo.create_model("transformer_nano", depth=2).eval()
    plain.load_state_dict(model.state_dict())
    assert not torch.allclose(plain(TEXT), model(TEXT), atol=1e-3), "another function of the same weights"


def test_what_is_not_reversible():
    for name in ("vit_nano", "moe_nano", "routing_nano", "zamba2_nano"):
        model = zoo.create_model(name, device="meta")
        with pytest.raises(ValueError, match="reversible: "):
            zoo.reversible(model)
        with pytest.raises(ValueError, match="adds to one stream"):
            lean(model, "reversible")
