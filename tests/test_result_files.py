"""A run of a part never takes away what a result file holds: it adds to it, or is refused before it begins."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

import pytest
import torch

from zoo.benchmarks import common, decode, emulated, kernels, products, quant
from zoo.benchmarks.common import command_line
from zoo.benchmarks.kept import RUN, earlier_runs, held, joined

MACHINE = {"date": "2026-01-01 00:00 UTC", "commit": "abc", "threads": 2}


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    return tmp_path


def write(folder: Any, name: str, **content: Any) -> None:
    (folder / f"{name}.json").write_text(json.dumps({"machine": MACHINE, **content}))


@pytest.mark.parametrize(("arguments", "refused"), [
    ([], False), (["--only", "a"], True), (["--only", "a", "b"], False), (["--only", "a", "--no-save"], False),
    (["--lengths", "3"], False),
])  # fmt: skip
@pytest.mark.parametrize("goes_on", [True, False])
@pytest.mark.parametrize("there", [True, False])
def test_a_part_is_refused_where_the_whole_would_go(there, goes_on, arguments, refused, results, capsys):
    if there:
        write(results, "subject", records=[])
    parser = command_line("subject", "", goes_on=goes_on)
    parser.add_argument("--only", nargs="+", default=["a", "b"], choices=["a", "b"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[1, 2])
    if not (refused and there and not goes_on):
        assert parser.parse_args(arguments)
        return
    with pytest.raises(SystemExit):
        parser.parse_args(arguments)
    assert "--only measures a part of what subject.json holds, which would go: add --no-save" in capsys.readouterr().err


def test_records_of_earlier_runs_stay_and_say_so(results):
    assert held("none", "records") == []
    write(results, "one", rate=7, records=[{"name": "a", "x": 1}, {"name": "b", "x": 2, "rate": 5}])
    before = held("one", "records", also=["rate"])
    assert [(r["rate"], r[RUN]) for r in before] == [(7, MACHINE), (5, MACHINE)]
    found = joined(before, [{"name": "b", "x": 3}], ["name"])
    assert [(r["name"], r["x"], RUN in r) for r in found] == [("a", 1, True), ("b", 3, False)]
    write(results, "one", records=found)
    assert held("one", "records")[0][RUN] == MACHINE  # still of the run that measured it
    assert earlier_runs(found) == "Of the run of 2026-01-01 00:00 UTC, commit abc, 2 threads: 1 rows. "
    assert (
        earlier_runs([{"name": "b"}]) == "" and joined(before, [], []) == before and joined(before, found, []) == found
    )


def test_a_decoding_run_of_one_model_leaves_the_others(results, monkeypatch):
    rates = iter([*[1e10] * len(decode.MODELS), 2e10, 2e10])

    def measure(name, options, advance):
        yield {
            "model": name, "form": "float32", "side": "zoo", "threads": 1, "bytes": 4e9, "read": 4e9,
            "bandwidth": next(rates), "prefill": [0.1], "steps": [0.2], "difference": 0.0,
        }  # fmt: skip

    monkeypatch.setattr(decode, "measure", measure)
    cores = os.cpu_count() or 1
    names = list(decode.MODELS)
    decode.main(["--threads", str(cores)])
    decode.main(["--only", names[1], "--threads", str(cores)])
    content = json.loads((results / "decode.json").read_text())
    assert [r["model"] for r in content["records"]] == names
    assert [r["bandwidth"] for r in content["records"]] == [2e10 if name == names[1] else 1e10 for name in names]
    text = (results / "decode.md").read_text()
    assert f"{len(names) - 1} rows" in text and text.count("| 400.0 | 0.50 |") == len(names) - 1
    assert text.count("| 200.0 | 1.00 |") == 1 and "10.0 to 20.0 GB/s" in text
    decode.main(["--only", names[0], "--threads", str(cores + 1)])
    assert json.loads((results / "decode.json").read_text()) == content


def test_differences_of_decoding_are_from_float32_whatever_is_measured(monkeypatch):
    for name, value in {"PROMPT": 16, "STEPS": 2, "bandwidth": lambda threads: 1e10}.items():
        monkeypatch.setattr(decode, name, value)
    options = argparse.Namespace(batch=1, forms=["4 bits, inputs of 8", "bfloat16"], against=[], threads=1, budget=0.01)
    found = {r["form"]: r["difference"] for r in decode.measure("transformer_nano", options, lambda form: None)}
    assert 0 < found["bfloat16"] < found["4 bits, inputs of 8"] < 1


@pytest.mark.parametrize(("threads", "batch", "busy", "name"), [
    (os.cpu_count(), 1, 0, "decode"), (99, 1, 0, "decode_threads99"), (99, 4, 1, "decode_threads99_batch4_busy1"),
])  # fmt: skip
def test_what_differs_from_a_plain_run_is_in_the_name(threads, batch, busy, name):
    assert decode.file_name(argparse.Namespace(threads=threads, batch=batch, busy=busy)) == name


def test_forms_that_a_file_lacks_are_added(results, monkeypatch):
    monkeypatch.setattr(quant, "RESULTS", results)
    score = {"bytes": 1e5, "bits_a_weight": 4.0, "seconds": 1.0}
    asked: list[tuple[str, list[str]]] = []

    def qualities(name, forms, advance):
        asked.append((name, forms))
        return [{"model": name, "form": form, "score": 1.5, **score} for form in (quant.FLOAT, *forms)]

    monkeypatch.setattr(quant, "qualities", qualities)
    monkeypatch.setattr(quant, "plot", lambda records, path: None)
    kept = {"model": "moe_nano", "form": "4 bits", "score": 1.25, **score}
    float32 = {"model": "moe_nano", "form": quant.FLOAT, "score": 1.0, **score}
    timed = {"model": "mamba2_130m", "form": quant.FLOAT, "bytes": 1, "bits_a_weight": 32, "prefill": [1], "steps": [1]}
    write(results, "quant", quality=[kept, float32], times=[timed])
    quant.main(["--only", "moe_nano", "--forms", "FP4", "--emulated", "--threads", "1"])
    content = json.loads((results / "quant.json").read_text())
    assert asked == [("moe_nano", ["FP4"])]  # what it is compared with is there
    assert [(r["form"], r["score"]) for r in content["quality"]] == [(quant.FLOAT, 1.5), ("4 bits", 1.25), ("FP4", 1.5)]
    text = (results / "quant.md").read_text()
    assert "a step after them, 2 threads" in text and "2 rows" in text
    assert "Bits a weight are 8 times all bytes that are saved" in text and "stay: moe_nano " in text


def test_what_no_form_makes_smaller_is_counted():
    assert quant.counted([]) == "" and quant.left("transformer_nano") < 0.01 < 0.1 < quant.left("vim_nano") < 0.2


@pytest.mark.parametrize("form", [name for name, kind in emulated.KINDS.items() if not kind.within])
def test_emulated_weights_are_those_of_torch(form):
    found = emulated.measured("transformer_nano", [form], one_row, lambda what: None)
    (row,) = emulated.show(found, {"transformer_nano": 0.0})[2]
    assert row[-1].endswith("met") and found[0]["score"] != 0
    found[0]["torch"] += 2 * emulated.NEAR + 2e-3
    assert emulated.show(found, {})[2][0][-1].endswith("missed")


def one_row(model: Any) -> float:
    tokens = torch.arange(64)[None]
    with torch.inference_mode():
        return model(tokens).float().log_softmax(-1)[0, :-1].gather(-1, tokens[0, 1:, None]).mean().item()


def test_products_agree_with_the_matrix_and_are_judged(monkeypatch):
    def once(calls, budget):
        return {name: [1.0] for name in calls}, {name: call() for name, call in calls.items()}

    monkeypatch.setattr(products, "interleaved", once)
    monkeypatch.setattr(products, "COLD", 1)
    monkeypatch.setattr(products, "SIZE", 128)
    found = list(products.measured(1e10, 0.01, lambda what: None))
    assert len(found) == len(products.ROWS) * len(products.PRODUCTS)
    rough = {"inputs of 2": 0.9, "inputs of 8": 0.03}
    for r in found:
        assert r["apart"] < next((most for inputs, most in rough.items() if inputs in r["name"]), 1e-5)
    for r in found:
        r["runs"] = [(1.5 if r["name"] == "integers of 4 bits" else 1.3) * r["bytes"] / 1e10]
    judged = {row[0].rpartition(",")[0]: row[-1] for row in products.show(found)[2]}
    assert judged["integers of 4 bits"] == "1.4 of the bound missed; many rows met" and judged["float32"] == ""
    assert judged["integers of 8 bits"] == "1.4 of the bound met; many rows met" and judged["2:4"] == "many rows met"
    scaled = {row[0]: row[1:] for row in products.show_scaled(found)[2]}
    assert list(scaled) == ["32", "64", "128"] and scaled["32"][:2] == ["16,384", "512"]
    before = 128**2 * (3.7 + 4.6) + 128 * 127 * 0.9
    after = 128**2 * 0.2 + (128 * (128 - 4) + (128 - 4) + 128 * 3) * 0.1 + 512 * 4.6
    assert scaled["32"][2] == f"{before / after:.2f}" and float(scaled["128"][2]) > before / after
    assert scaled["64"][6:] == ["1.00"] * 4
    assert len(products.OPERATIONS) == 5 and all(name.endswith("_matmul") for name in products.OPERATIONS)


def test_a_run_of_products_leaves_the_operations(results, monkeypatch):
    monkeypatch.setattr(kernels, "RESULTS", results)
    monkeypatch.setattr(kernels, "peaks", lambda device: {"bytes/s": 2e10, "FLOP/s": 1e11})
    monkeypatch.setattr(kernels, "bandwidth", lambda threads: 1e10)
    row = {"name": products.DENSE, "operation": "dense", "bytes": 16, "bandwidth": 1e10, "apart": 0.0, "runs": [1.0]}
    monkeypatch.setattr(products, "measured", lambda *_: [row | {"rows": rows} for rows in products.ROWS])
    record = {
        "name": "rope", "length": kernels.COMPARED, "measure": "forward", "runs": {kernels.OURS: [1e-3]}, "bytes": 1e7,
        "flops": 1, "apart": 0.0,
    }  # fmt: skip
    peaks = {"bytes/s": 1e10, "FLOP/s": 1e11}
    write(results, "kernels", peaks=peaks, records=[record], memory={"rope": {"zoo": 1, "eager": 2}})
    kernels.main(["--only", "lowbit_matmul", "--device", "cpu"])
    content = json.loads((results / "kernels.json").read_text())
    assert [r["name"] for r in content["records"]] == ["rope"] and content["records"][0]["peaks"] == peaks
    assert len(content["products"]) == len(products.ROWS) and content["memory"] == {"rope": {"zoo": 1, "eager": 2}}
    text = (results / "kernels.md").read_text()
    assert "| rope, forward | 1.00 | 10.0 |" in text and "100%" in text and f"{products.SIZE} x {products.SIZE}" in text
