"""ELM: the authors' recurrence in plain steps under their tensor names, versions, time constants, series in parts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from zoo.checkpoints.convert import implied, to_zoo
from zoo.layers.ssm.leaky_memory import Synapses


def built(name: str = "elm_nano", **options: Any) -> Any:
    return zoo.create_model(name, dtype=torch.float64, **options).eval()


def spikes(*shape: int) -> Tensor:
    return (torch.rand(shape) < 0.2).double()


def theirs(version: int, inputs: int, branches: int, dim: int, hidden: int, outputs: int = 2) -> dict[str, Tensor]:
    """Random weights as the authors' code names them, of one synapse an input."""
    shapes = {
        "_proto_w_s": (inputs,), "_proto_tau_m": (dim,), "mlp.network.0.weight": (hidden, branches + dim),
        "mlp.network.0.bias": (hidden,), "mlp.network.2.weight": (dim, hidden), "mlp.network.2.bias": (dim,),
        "w_y.weight": (outputs, dim), "w_y.bias": (outputs,),
    }  # fmt: skip
    weights = {name: torch.randn(shape).double() / shape[-1] ** 0.5 for name, shape in shapes.items()}
    tau = torch.full((inputs if version == 1 else branches,), 5.0).double()
    return weights | {("tau_s" if version == 1 else "tau_b"): tau}


def stepped(w: dict[str, Tensor], x: Tensor, limits: tuple[float, float], strength: float, dt: float) -> Tensor:
    """A trace a synapse in version 1, one a branch in version 2; the network sees the decayed memory."""
    low, high = limits
    tau = low + (high - low) * torch.sigmoid(w["_proto_tau_m"])
    kappa = torch.exp(-dt / tau)
    gain = strength * (1 - kappa) if "tau_s" in w else 1 - torch.exp(-dt * strength / tau)
    weight = w["_proto_w_s"].clamp(min=0)
    branches = w["mlp.network.0.weight"].shape[1] - len(tau)
    trace, m, outputs = torch.zeros(len(x), len(w.get("tau_s", w.get("tau_b")))).double(), 0 * tau, []
    for t in range(x.shape[1]):
        arriving = weight * x[:, t]
        if "tau_b" in w:
            arriving = arriving.view(len(x), branches, -1).sum(-1)
        trace = math.exp(-dt / 5.0) * trace + arriving
        seen = torch.cat([trace.view(len(x), branches, -1).sum(-1), (kappa * m).expand(len(x), -1)], 1)
        hidden = (seen @ w["mlp.network.0.weight"].T + w["mlp.network.0.bias"]).clamp(min=0)
        drive = hidden @ w["mlp.network.2.weight"].T + w["mlp.network.2.bias"]
        m = kappa * m + gain * 1.7159 * torch.tanh(drive * 2 / 3)
        outputs.append(m @ w["w_y.weight"].T + w["w_y.bias"])
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("branches", [12, 4])
def test_is_the_authors_recurrence_under_their_names(version, branches):
    published = theirs(version, 12, branches, 5, 7)
    model = built(
        in_features=12, num_classes=2, dim=5, num_branches=branches, per_branch=12 // branches, hidden_dim=7,
        global_pool="none", tau_min=2.0, tau_max=60.0, strength=3.0, dt=1.5, **implied(published),
    )  # fmt: skip
    model.load_state_dict(to_zoo(published))
    x = spikes(3, 25, 12)
    torch.testing.assert_close(model(x), stepped(published, x, (2.0, 60.0), 3.0, 1.5), atol=1e-12, rtol=1e-12)


def test_a_file_that_has_no_counterpart_is_refused():
    published = theirs(1, 6, 6, 3, 4)
    published["tau_s"][2] = 7.0
    with pytest.raises(ValueError, match="tau_s must be one time constant for all, as tau_branch is"):
        to_zoo(published)
    deeper = theirs(2, 6, 6, 3, 4) | {"mlp.network.4.weight": torch.zeros(3, 4)}
    with pytest.raises(ValueError, match="one hidden layer"):
        to_zoo(deeper)


def test_each_synapse_is_of_its_input():
    synapses = Synapses(11, 4, 5, overlap=True).double()
    torch.nn.init.normal_(synapses.weight)
    order = [0, 5, 1, 6, 2, 7, 3, 8, 4, 9, 5]  # halves of 11 inputs in turn, by whole division
    x, expected = torch.randn(11).double(), []
    for branch in range(4):
        taken = range(3 * branch, min(3 * branch + 5, 11))
        weights = synapses.weight[5 * branch : 5 * branch + len(taken)].clamp(min=0)
        expected.append(sum(w * x[order[place]] for w, place in zip(weights, taken, strict=True)))
    torch.testing.assert_close(synapses(x[None, None])[0, 0], torch.stack(expected))


def test_the_bin_does_not_change_the_decay_and_time_constants_span_their_range():
    """A silent network: half the bin twice is the bin once."""
    fine, coarse = (built(dt=dt, num_branches=None, dim=6, tau_max=80.0).neuron for dt in (5.0, 10.0))
    for neuron in (fine, coarse):
        for parameter in (neuron.W_out, neuron.bias):
            torch.nn.init.zeros_(parameter)
    states = fine.init_state(2), coarse.init_state(2)
    for state in states:
        state.memory = torch.arange(12.0).double().view(2, 6)
    a, b = fine(torch.zeros(2, 4, 32).double(), states[0]), coarse(torch.zeros(2, 2, 32).double(), states[1])
    torch.testing.assert_close(a[:, -1], b[:, -1])
    tau = fine.tau_memory
    torch.testing.assert_close(tau[[0, -1]], torch.tensor([1.0, 80.0]).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close((tau[1:] / tau[:-1]).log(), torch.full((5,), 80.0).double().log() / 5, atol=1e-4, rtol=0)


def test_learnt_time_constants_are_parameters_and_learn_without_weight_decay():
    model = built(learn_tau=True)
    model(spikes(2, 9, 32)).square().sum().backward()
    assert model.neuron.tau_logits.grad.any() and "neuron.tau_logits" in model.no_weight_decay()
    assert "neuron.tau_logits" in built().state_dict() and not built().neuron.float32_parameters


@pytest.mark.parametrize("pool", ["last", "none"])
def test_a_series_in_parts_equals_the_whole(pool):
    model, x = built(global_pool=pool), spikes(2, 20, 32)
    whole, state = model(x), model.init_state(2)
    parts = [model(part, state) for part in x.split([7, 1, 1, 11], dim=1)]
    found = parts[-1] if pool == "last" else torch.cat(parts, 1)
    torch.testing.assert_close(found, whole, atol=1e-12, rtol=1e-12)
    assert state.nbytes == 2 * model.state_size(20) * 8


def test_timm_like_surface():
    model, x = built(num_classes=0), spikes(2, 8, 32)
    assert model(x).shape == (2, 32) == (2, model.num_features)
    model.reset_classifier(5, global_pool="avg")
    features = model.forward_features(x)
    torch.testing.assert_close(model(x), model.get_classifier()(features.mean(1)))
    assert model.num_classes == 5 and model(x).dtype == torch.float64
    noisy = built(input_drop_rate=0.5).train()
    assert not torch.equal(noisy(x), noisy(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"global_pool": "max"}, "global_pool must be one of last, avg, none, got 'max'"),
        ({"version": 3}, r"version must be one of \[1, 2\], got 3"),
        ({"tau_max": 0.5}, "tau_max must be above tau_min"),
        ({"activation": "gelu"}, "activation must be 'relu' or 'silu', got 'gelu'"),
        ({"num_branches": 5}, "branches must share all inputs: 5 of 1 synapses do not fit 32 inputs"),
        ({"dt": 0.0}, "dt must be above 0"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        built(**options)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 31), (2, 0, 32)])
def test_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"a series must be \(B, T, 32\) of a floating dtype with T >= 1"):
        zoo.create_model("elm_nano")(torch.zeros(shape))
