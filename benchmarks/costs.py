"""What every model costs, counted without running it: parameters, FLOPs, bytes of state, and their growth with length.

    zoo bench costs                     # writes benchmarks/results/costs.{json,md}; keeps what has not changed
    zoo bench costs "mamba2_*" --again       # counts these anew, and keeps the others

Everything runs on the meta device, so that the largest model needs no memory and every machine finds the same. Language
models read 1,024 tokens, classifiers and sequence models 256 or as many as they can, vision models one image of their
own size; all in float32, forward, one row. FLOPs are those of torch's counter with the formulas of the zoo's
operations; where values decide how much is computed they are the most that may be. The nano language models are counted
at 256 to 4,096 tokens too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

import zoo
from zoo.benchmarks.common import RESULTS, command_line, fitted_exponent, machine, markdown, save, table, write_result
from zoo.benchmarks.report.figures import count, scaled, size
from zoo.benchmarks.report.results import Results
from zoo.kernels.flops import flop_counter
from zoo.kernels.native import cache_folder
from zoo.language import LanguageModel
from zoo.layers.quant import count_parameters
from zoo.profile.sample import answer, items, sample, unit
from zoo.registry import lookup

LENGTHS = (256, 1024, 4096)
TOKENS = 1024  # of a language model
COLUMNS = ("model", "parameters", "active", "FLOPs an item", "item", "bytes of state", "after tokens")


def digest(name: str) -> str:
    """Of a model's configuration: other digits, another model."""
    config = lookup(name).configure()
    fields = repr(sorted(dataclasses.asdict(config).items()))
    return hashlib.sha256(f"{type(config).__name__} {fields}".encode()).hexdigest()[:12]


def counted(name: str) -> dict[str, Any]:
    """The record of one model; of one that cannot be counted, why."""
    model: Any = zoo.create_model(name, device="meta").eval().requires_grad_(False)  # no hooks of gradients
    record = {"name": name, "digest": digest(name), "parameters": count_parameters(model)}
    try:
        record |= forward(model, TOKENS if isinstance(model, LanguageModel) else None)
        record["active_parameters"] = record["parameters"]
        if isinstance(model, LanguageModel):
            record["active_parameters"] = model.num_active_parameters()
            record["state"] = [[length, state_bytes(model, length)] for length in (TOKENS // 4, TOKENS)]
    except (NotImplementedError, TypeError, ValueError) as error:  # values decide, or it reads something else
        return record | {"error": " ".join(str(error).split())[:200]}
    return record


@torch.no_grad()
def forward(model: Any, tokens: int | None) -> dict[str, Any]:
    """FLOPs of a pass, and what was read."""
    x = sample(model, 1, tokens)
    with flop_counter(display=False) as counter:
        answer(model, x)
    return {"inputs": list(x.shape), "unit": unit(model), "items": items(model, x), "flops": counter.get_total_flops()}


@torch.no_grad()
def state_bytes(model: Any, tokens: int) -> int:
    """What a language model remembers of one row after so many tokens."""
    state = model.init_state(1, tokens)
    model(sample(model, 1, tokens), state, logits_to_keep=1)
    return state.nbytes


def over_length(name: str) -> dict[str, Any] | None:
    """FLOPs of a forward pass and bytes of state of a language model at each length; None if it reads fewer."""
    model = zoo.create_model(name, device="meta").eval()
    try:
        flops = [forward(model, length)["flops"] for length in LENGTHS]
        state = [state_bytes(model, length) for length in LENGTHS]
    except (NotImplementedError, ValueError):
        return None
    return {"name": name, "digest": digest(name), "lengths": list(LENGTHS), "flops": flops, "state": state}


def kept(records: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Records of models that are still what they were, by name."""
    known = set(zoo.list_models())
    return {r["name"]: r for r in records if r["name"] in known and r["digest"] == digest(r["name"])}


def remembered(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The same, counted now where ``costs.json`` in the cache folder has not kept it; who is stopped goes on."""
    path = cache_folder() / "costs.json"
    try:
        known = kept(json.loads(path.read_text(encoding="utf-8"))["records"])
    except (OSError, ValueError, LookupError, TypeError):  # not there, or not ours
        known = {}
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in [name for name in names if name not in known]:
        known[name] = counted(name)
        write_result(path, {"records": list(known.values())})
    return {name: known[name] for name in names}


def show(records: Iterable[dict[str, Any]]) -> list[list[str]]:
    rows = []
    for r in records:
        if "error" in r:
            rows.append([r["name"], count(r["parameters"]), "", "", "", "", ""])
            continue
        tokens, held = r["state"][-1] if "state" in r else (None, None)
        rows.append([
            r["name"], count(r["parameters"]), count(r["active_parameters"]), scaled(r["flops"] / r["items"]),
            r["unit"], size(held), "" if tokens is None else str(tokens),
        ])  # fmt: skip
    return rows


JOBS: dict[str, Callable[[str], dict[str, Any] | None]] = {"records": counted, "over_length": over_length}


def content(here: dict[str, object], found: Mapping[str, Mapping[str, dict[str, Any]]]) -> dict[str, Any]:
    """Of the file: models in natural order."""
    lists = {key: [known[name] for name in zoo.list_models() if name in known] for key, known in found.items()}
    return {"machine": here, **lists}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("costs", __doc__)
    parser.add_argument("names", nargs="*", default=["*"], metavar="NAME", help="models, or patterns of names (all)")
    parser.add_argument("--again", action="store_true", help="also models whose record is there")
    options = parser.parse_args(arguments)
    names = list(dict.fromkeys(name for pattern in options.names for name in zoo.list_models(pattern)))
    if not names:
        parser.error(f"no model fits {' '.join(options.names)}; `zoo list` shows all")

    results = Results(RESULTS) if RESULTS.is_dir() else None
    found = {key: kept(results.records("costs", key, "name", "digest") if results else ()) for key in JOBS}
    here, progress = machine(), Progress(transient=True, console=Console(stderr=True))
    with progress:
        for key, job in JOBS.items():
            wanted = [n for n in names if key == "records" or (n.endswith("_nano") and lookup(n).task == "language")]
            for name in progress.track(wanted, description=key):
                if (options.again or name not in found[key]) and (made := job(name)) is not None:
                    found[key][name] = json.loads(json.dumps(made))
                    if not options.no_save:  # who is stopped goes on from here
                        write_result(RESULTS / "costs.json", content(here, found))
    record = content(here, found)
    text = "Counted on the meta device, float32, one row.", "Models"
    rows = show(r for r in record["records"] if r["name"] in names)
    Console(width=max(120, Console().width)).print(table(text[0], COLUMNS, rows))
    if not options.no_save:
        rows = [
            [r["name"], *(f"{fitted_exponent(r['lengths'], r[k]):.2f}" for k in ("flops", "state"))]
            for r in record["over_length"]
        ]
        growth = markdown("Exponents over length, 256 to 4,096 tokens", ("model", "FLOPs", "bytes of state"), rows)
        save("costs", record, markdown(text[1], COLUMNS, show(record["records"])) + "\n" + growth)
