from __future__ import annotations

import pytest
import torch

import zoo


@pytest.mark.parametrize(("name", "shape"), [("mamba2_nano", (2, 16)), ("vim_nano", (1, 1, 8, 8))])
def test_compiles_and_changes_nothing(name, shape, monkeypatch):
    model = zoo.create_model(name)
    model.eval().head.train()  # a mixture of modes
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes, random = [m.training for m in model.modules()], torch.get_rng_state()
    used = set()
    monkeypatch.setattr(
        "zoo.kernels.dispatch.Operation.resolve",
        lambda self, impl, device, resolve=zoo.kernels.dispatch.Operation.resolve: (
            used.add(self.name) or resolve(self, impl, device)
        ),
    )
    seconds = zoo.warmup(model, [shape], training=True)
    assert list(seconds) == [shape] and seconds[shape] > 0
    assert used >= ({"ssd", "causal_conv1d"} if name == "mamba2_nano" else {"selective_scan", "causal_conv1d"})
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert [m.training for m in model.modules()] == modes and torch.equal(torch.get_rng_state(), random)


def test_a_shape_of_another_rank_is_named():
    with pytest.raises(ValueError, match=r"must be \(batch, length\), got \(1, 3, 32, 32\)"):
        zoo.warmup(zoo.create_model("mamba2_nano"), [(1, 3, 32, 32)])
