"""Runtimes, metrics and serving, against cases worked by hand."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch

import zoo
from zoo.profile.metrics import Energy, measured_energy, metrics
from zoo.profile.record import Peaks, Phase, Profile, Seconds
from zoo.profile.runtime import STEPS, Runtime, fit, idealised_runtime
from zoo.profile.serving import Machine, Plan, Request, colocated, compare, hand_over, planned, plans, profiled, split

MACHINE = Machine(prefill=lambda tokens: tokens / 10, decode=lambda rows, held: 1.0, most_tokens=100)


def test_a_law_is_found_again_and_adds_up():
    law = Runtime((0.5, 0.25, 0.125), (0.1, 0.01))
    found = fit({n: law.prefill(n) for n in (1, 4, 9)}, {n: law.decode(n) for n in (2, 8)})
    assert found.prompt == pytest.approx(law.prompt) and found.step == pytest.approx(law.step)
    assert law.seconds(3, 4) == pytest.approx(law.prefill(3) + law.decode(4) + law.decode(5) + law.decode(6))
    assert law.seconds(3, 1) == law.prefill(3)


def test_no_term_is_negative():
    """Of a constant step the slope is 0, not what rounding makes it."""
    assert fit({1: 1.0, 2: 2.0, 3: 3.0}, {1: 2.0, 2: 1.9}).step[1] == 0
    with pytest.raises(ValueError, match="three prompts and two steps at least, got 2 and 2"):
        fit({1: 1.0, 2: 2.0}, {1: 1.0, 2: 1.0})
    with pytest.raises(ValueError, match="at least one each, got 3 and 0"):
        Runtime((0, 0, 0), (0, 0)).seconds(3, 0)


def test_runtime_of_a_model_is_judged_by_held_out_lengths(monkeypatch):
    order = []

    def timed(call, device):
        call()
        order.append(call)
        return 1.0

    monkeypatch.setattr(import_module("zoo.profile.measure"), "timed", timed)
    model = zoo.create_model("mamba2_nano").train()
    found = idealised_runtime(model, (4, 8, 12), (10,), runs=2)
    assert len(set(order)) == 8 and order[:8] == order[8:], "in turns"
    assert model.training and set(found.errors) == {"prompt of 10", "step after 10"}
    assert all(abs(error) < 1e-9 for error in found.errors.values())
    assert found.seconds(5, 3) == pytest.approx(1 + 2 / STEPS), "a prompt and two steps"


def measured() -> Profile:
    phase = Phase("forward", 50, 400, 80, 30, 16, 4.0, 5.0, Seconds(8.0, 7.0, 9.0), 20)
    peaks = Peaks("cpu", "float32", 100.0, 10.0)
    return Profile("m", "cpu", "bfloat16", (1, 50), "token", 40, 40, 80, (), (phase,), (), peaks)


def test_the_six_metrics_by_hand():
    found = metrics(measured(), "forward", memory=200, energy=Energy(3.0, "RAPL"))
    assert found.memory_utilisation == (80 + 20) / 200 and found.compute_utilisation == 400 / 8 / 100
    assert found.bandwidth_utilisation == 30 / 8 / 10 and found.latency == 8 and found.throughput == 50 / 8
    assert (found.energy, found.energy_source, found.compression) == (3.0, "RAPL", 2.0)
    assert metrics(measured(), "forward", memory=200).energy_source == "not measured"
    assert measured().phase("forward").gap == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU's energy is read there")
def test_energy_is_read_or_said_to_be_unavailable(tmp_path, monkeypatch):
    assert measured_energy(lambda: None, least=0, rapl=tmp_path).joules is None
    domain = tmp_path / "intel-rapl:0"
    domain.mkdir()
    (domain / "energy_uj").write_text("999000")
    (domain / "max_energy_range_uj").write_text("999999")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # what a model on the CPU takes is not the GPU's
    cpu = torch.device("cpu")
    found = measured_energy(lambda: (domain / "energy_uj").write_text("1000"), cpu, least=0, rapl=tmp_path)
    assert found.joules == pytest.approx(0.002) and found.source.startswith("RAPL")  # past the counter's end


def test_hand_over_of_a_state():
    assert hand_over(80, 10) == 8  # in one piece
    assert hand_over(80, 10, layers=4, layer_seconds=2) == 2  # the last layer's alone
    assert hand_over(80, 10, layers=4, layer_seconds=1.5) == 2 + 3 * 0.5
    with pytest.raises(ValueError, match="bandwidth must be positive"):
        hand_over(1, 0)


def test_one_machine_serves_by_iterations():
    """The second prompt comes while the first is decoded, and delays it by its own 2 seconds."""
    served = colocated([Request(0, 10, 3), Request(1.5, 20, 2)], MACHINE)
    assert served[0].first == 1 and served[0].second == 2 and served[0].last == 5  # 1, 2, prompt until 4, 5
    assert served[1].first == 4 - 1.5 and served[1].last == 5 - 1.5


def test_a_machine_of_a_fitted_law():
    """Steps read what all rows hold; what the weights leave is room for tokens."""
    machine = profiled(Runtime((1, 0.5, 0), (2, 0.25)), weight_bytes=60, token_bytes=4, memory=100)
    assert (machine.prefill(4), machine.decode(3, 8), machine.most_tokens) == (3, 4, 10)
    served = colocated([Request(0, 4, 2)], machine)
    assert served[0].first == 3 and served[0].last == 3 + 2 + 0.25 * 5
    assert profiled(Runtime((1, 0, 0), (1, 0)), weight_bytes=1, token_bytes=0, memory=2).most_tokens > 1 << 40
    with pytest.raises(ValueError, match="101 bytes of weights leave no room for a token in 100 bytes"):
        profiled(Runtime((1, 0, 0), (1, 0)), weight_bytes=101, token_bytes=0, memory=100)


def test_what_does_not_fit_waits():
    small = Machine(MACHINE.prefill, MACHINE.decode, most_tokens=15)
    served = colocated([Request(0, 10, 3), Request(0, 10, 1)], small)
    assert served[0].last == 3 and served[1].first == 4
    with pytest.raises(ValueError, match="does not fit the 15 tokens"):
        colocated([Request(0, 10, 6)], small)


def test_prompts_and_tokens_apart():
    """The second prompt no longer delays the first request's tokens; its own come 0.5 seconds after the prompt."""
    served = split([Request(0, 10, 3), Request(1.5, 20, 2)], MACHINE, MACHINE, lambda tokens: 0.5)
    assert (served[0].first, served[0].second, served[0].last) == (1, 2.5, 3.5)
    assert (served[1].first, served[1].last) == (2.0, 5.0 - 1.5)
    assert split([Request(0, 10, 1)], MACHINE, MACHINE, lambda _: 9.0)[0].last == 1
    alone = split([Request(0, 10, 4)], MACHINE, MACHINE, lambda _: 0.0)
    assert alone == colocated([Request(0, 10, 4)], MACHINE)


def test_plans_are_listed_and_compared():
    assert set(plans(4, depth=6, heads=4, weight_bytes=10, memory=6)) == {
        Plan(2, 2, 1), Plan(1, 2, 2), Plan(2, 1, 2), Plan(1, 1, 4),
    }  # fmt: skip
    with pytest.raises(ValueError, match="no plan puts"):
        plans(2, depth=3, heads=3, weight_bytes=10, memory=6)
    one = planned(MACHINE, Plan(1, 1, 1), 6, 8, 100.0, token_bytes=1, weight_bytes=10, memory=60)
    assert one.prefill(30) == MACHINE.prefill(30) and one.most_tokens == 50  # one device sends nothing
    two = planned(MACHINE, Plan(1, 1, 2), 6, 8, 100.0, token_bytes=1, weight_bytes=10, memory=60)
    assert two.prefill(10) == pytest.approx(0.5 + 10 * (2 * 6 * 2 * 0.5 * 8 / 100)) and two.most_tokens == 110
    requests = [Request(0, 10, 2), Request(0, 10, 2)]
    best, worst = compare(requests, [(Plan(1, 1, 1), MACHINE), (Plan(2, 1, 1), MACHINE)])
    assert best.plan.replicas == 2 and best.seconds == 2 and worst.seconds == 3 and best.first == 1
