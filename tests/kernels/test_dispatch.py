from __future__ import annotations

import threading

import pytest
import torch

from zoo.kernels import available_implementations, implementation, ssd
from zoo.kernels.dispatch import ENVIRONMENT_VARIABLE, Implementation, Operation
from zoo.kernels.ssd.op import operation

CPU = torch.device("cpu")


def chosen() -> str:
    return operation.resolve("auto", CPU).name


def test_automatic_choice_is_the_first_that_can_run():
    assert chosen() == available_implementations("ssd")[0] == "native"


def test_block_and_environment_choose_and_the_innermost_wins(monkeypatch):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "selective_scan=chunked, ssd=reference")
    assert chosen() == "reference"
    with implementation("chunked"):
        assert chosen() == "chunked"
        with implementation(ssd="reference"):
            assert chosen() == "reference"
        assert operation.resolve("reference", CPU).name == "reference"
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "chunked")
    assert chosen() == "chunked"


def test_blocks_that_repeat_a_name_or_end_in_another_order_leave_the_others():
    with implementation("reference"), implementation("chunked"):
        with implementation("reference"):
            pass
        assert chosen() == "chunked"
    with implementation("reference"):
        with implementation("reference"):
            pass
        assert chosen() == "reference"
    first, second = implementation("reference"), implementation("chunked")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert chosen() == "chunked"
    second.__exit__(None, None, None)
    assert chosen() == "native"


def test_blocks_of_many_threads_all_end():
    def open_and_close():
        for _ in range(300):
            with implementation("reference"), implementation(ssd="chunked"):
                assert chosen() in ("reference", "chunked")

    threads = [threading.Thread(target=open_and_close) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert chosen() == "native"


@pytest.mark.parametrize("setting", ["sdd=chunked", "ssd=", "=chunked", "reference, sdd=chunked"])
def test_a_setting_that_chooses_nothing_is_an_error(monkeypatch, setting):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, setting)
    with pytest.raises(ValueError, match=r"ZOO_IMPLEMENTATION must be .*'ssd'.* got '(sdd=chunked|ssd=|=chunked)'"):
        chosen()


def test_block_holds_in_other_threads():
    names = []
    with implementation("reference"):
        thread = threading.Thread(target=lambda: names.append(chosen()))
        thread.start()
        thread.join()
    assert names == ["reference"]


def test_a_named_implementation_never_falls_back():
    with pytest.raises(ValueError, match=r"ssd has no implementation 'absent'.*'chunked', 'reference'"):
        operation.resolve("absent", CPU)
    with implementation("absent"), pytest.raises(ValueError, match="no implementation 'absent'"):
        ssd(torch.ones(1, 2, 1, 1), torch.ones(1, 2, 1), torch.ones(1), torch.ones(1, 2, 1, 1), torch.ones(1, 2, 1, 1))


def test_what_only_its_name_may_choose_comes_after_the_automatic_choice():
    asked_for = Implementation("asked_for", lambda: None, lambda: None, automatic=lambda device: False)
    example = Operation("test_dispatch_automatic", asked_for, Implementation("usual", lambda: None, lambda: None))
    assert example.available(CPU) == ["usual", "asked_for"]
    assert example.resolve("auto", CPU).name == "usual"
    assert example.resolve("asked_for", CPU) is asked_for


def test_triton_on_the_cpu_runs_by_name_under_the_interpreter_only(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match=r"'triton' cannot run on cpu: .*TRITON_INTERPRET=1.*\['native', 'chunked'"):
        operation.resolve("triton", CPU)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert operation.resolve("triton", CPU).name == "triton"
    assert chosen() == "native"


def test_an_implementation_that_cannot_run_here_lists_those_that_can():
    absent = Implementation("absent", lambda: None, lambda: None, lambda device: "there is no such device")
    present = Implementation("present", lambda: None, lambda: None)
    example = Operation("test_dispatch_example", absent, present)
    assert example.resolve("auto", CPU).name == "present"
    with pytest.raises(RuntimeError, match=r"'absent' cannot run on cpu: there is no such device; .*\['present'\]"):
        example.resolve("absent", CPU)
    with pytest.raises(ValueError, match="already registered"):
        Operation("test_dispatch_example", present)
