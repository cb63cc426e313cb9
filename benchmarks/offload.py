"""Models larger than a stated memory: the peak of a process, what is read, and the time of a token.

    zoo bench offload                  # writes benchmarks/results/offload.{json,md}
    zoo bench offload --tokens 8 --no-save

Two models of random weights are saved, and continue a prompt in a process of their own, from memory and within a part
of it; the peak counts everything that the process takes once it has imported the library. Three bundled nanos say what
routers and ReLUs ask for: how often an expert was not there in time, and how much of the neurons is read for a token.

Expected: no process takes more than its limit and what the model in memory takes beyond its weights (and 5 %); the
text is the same; a ring reads every part once a token, one that keeps all slots but two the rest alone; guesses make
experts late less often than none (EdgeMoE, arXiv 2308.14352), and a window of 5 tokens reads less of the neurons than
one of 1 (LLM in a flash, arXiv 2312.11514).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import zoo
from zoo.benchmarks.common import MIB, command_line, fresh_peak, peak_memory, publish
from zoo.offload import TPILLM, EdgeMoE, LLMInAFlash, Offload, SEMoE

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "transformer": ("transformer_nano", {"dim": 768, "depth": 12, "num_heads": 12, "num_kv_heads": 4, "mlp_dim": 2048}),
    "experts": (
        "moe_nano",
        {"dim": 512, "depth": 6, "num_heads": 8, "num_kv_heads": 2, "mlp_dim": 1024, "num_experts": 8},
    ),
}
WITHIN: list[tuple[str, float, Offload]] = [
    ("transformer", 0.25, TPILLM(slots=2)), ("transformer", 0.25, TPILLM()), ("transformer", 0.5, TPILLM(keep=True)),
    ("experts", 0.4, TPILLM()), ("experts", 0.4, SEMoE()), ("experts", 0.4, EdgeMoE()),
]  # fmt: skip
PROMPT = "The import statement combines two operations; it searches for the named module, then it binds the results."
ASKED: list[tuple[str, Offload]] = [
    *(("moe_nano", EdgeMoE(slots=8, ahead=ahead)) for ahead in (0, 1, 2, 3)),
    *(("smallthinker_nano", EdgeMoE(slots=12, ahead=ahead)) for ahead in (0, 2, 4)),
    *(("nemotron_h_nano", LLMInAFlash(window=window)) for window in (1, 2, 5, 10, None)),
]
COLUMNS = (
    "model",
    "weights, MiB",
    "policy",
    "memory, MiB",
    "peak, MiB",
    "read a token, MiB",
    "bound",
    "ms a token",
    "text",
)
TRAFFIC = ("model", "policy", "used a token", "read of it", "late")


def decode(folder: str, share: float | None, policy: Offload | None, tokens: int) -> dict[str, Any]:
    """A model of a folder continues a prompt, in memory or within a share of its weights: in a process of its own."""
    torch.set_grad_enabled(False)
    found: dict[str, Any] = {}

    def run() -> None:
        weights = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
        if policy is None:
            model: Any = zoo.create_model(f"local-dir:{folder}").eval()
        else:
            model = zoo.offload(folder, memory=int((share or 1) * weights), policy=policy)
        zoo.generate(model, [list(PROMPT.encode())], 2, temperature=0)
        before = 0
        if policy is not None:
            model.offloaded.wait()
            before = model.offloaded.traffic.bytes
        start = time.perf_counter()
        (text,) = zoo.generate(model, [list(PROMPT.encode())], tokens, temperature=0)
        found.update(seconds=(time.perf_counter() - start) / tokens, text=text.tolist(), weights=weights)
        if policy is not None:
            held = model.offloaded
            held.wait()
            found["read"] = (held.traffic.bytes - before) / tokens
            found["bound"] = sum(unit.nbytes for number, unit in enumerate(held.units) if number not in held.pinned)
            found["memory"] = int((share or 1) * weights)

    found["peak"] = peak_memory(run)
    return found


def within(tokens: int) -> list[dict[str, Any]]:
    """Every model in memory, and within a part of it."""
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        for name, (base, options) in MODELS.items():
            torch.manual_seed(0)
            zoo.save_model(zoo.create_model(base, **options), Path(place) / name)
            cases: list[tuple[float | None, Offload | None]] = [(None, None)]
            cases += [(share, policy) for model, share, policy in WITHIN if model == name]
            for share, policy in cases:
                found = fresh_peak(decode, str(Path(place) / name), share, policy, tokens)
                records.append({"model": name, "policy": str(policy or "in memory"), **found})
    return records


def asked(name: str, policy: Offload, tokens: int) -> dict[str, Any]:
    """What a bundled nano asks for while it decodes."""
    model: Any = zoo.offload(zoo.create_model(name, pretrained=True), memory="1GB", policy=policy)
    held, state = model.offloaded, model.init_state(1)
    with torch.no_grad():
        logits = model(torch.tensor([list(PROMPT.encode())]), state, logits_to_keep=1)
        before = (held.traffic.loads, held.traffic.uses, held.traffic.late)
        for _ in range(tokens):
            logits = model(logits.argmax(-1), state)
    loads, uses, late = (
        now - then for now, then in zip((held.traffic.loads, held.traffic.uses, held.traffic.late), before, strict=True)
    )
    return {"model": name, "policy": str(policy), "uses": uses / tokens, "read": loads / uses, "late": late / uses}


def verdict(records: Sequence[dict[str, Any]], traffic: Sequence[dict[str, Any]]) -> list[str]:
    """What was expected, and what came."""
    plain = {record["model"]: record for record in records if "memory" not in record}
    lines = []
    for record in records:
        if "memory" in record:
            base = plain[record["model"]]
            most = 1.05 * (record["memory"] + max(0, base["peak"] - base["weights"]))
            met = record["peak"] <= most and record["text"] == base["text"]
            met = met and ("EdgeMoE" in record["policy"] or record["read"] <= 1.01 * record["bound"])
            lines.append(f"{record['model']}, {record['policy']}: the expectation is {'met' if met else 'missed'}.")
    late = {record["policy"]: record["late"] for record in traffic if record["model"] == "moe_nano"}
    read = {record["policy"]: record["read"] for record in traffic if record["model"] == "nemotron_h_nano"}
    guesses = late[str(EdgeMoE(slots=8, ahead=2))] < late[str(EdgeMoE(slots=8, ahead=0))]
    window = read[str(LLMInAFlash(window=5))] < read[str(LLMInAFlash(window=1))]
    lines.append(f"Guesses make experts late less often: {'met' if guesses else 'missed'}.")
    lines.append(f"A longer window reads less: {'met' if window else 'missed'}.")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("offload", __doc__)
    parser.add_argument("--tokens", type=int, default=16, help="that are decoded")
    options = parser.parse_args(arguments)
    records = within(options.tokens)
    traffic = [asked(name, policy, 4 * options.tokens) for name, policy in ASKED]
    plain = {record["model"]: record["text"] for record in records if "memory" not in record}
    rows = [
        [r["model"], f"{r['weights'] / MIB:.0f}", r["policy"], f"{r['memory'] / MIB:.0f}" if "memory" in r else "",
         f"{r['peak'] / MIB:.0f}", f"{r.get('read', 0) / MIB:.1f}", f"{r.get('bound', 0) / MIB:.1f}",
         f"{1000 * r['seconds']:.1f}", "same" if r["text"] == plain[r["model"]] else "other"]
        for r in records
    ]  # fmt: skip
    asking = [
        [r["model"], r["policy"], f"{r['uses']:.1f}", f"{r['read']:.1%}", f"{r['late']:.1%}"] for r in traffic
    ]  # fmt: skip
    tables = [
        (f"{options.tokens} tokens after a prompt of {len(PROMPT)}", COLUMNS, rows),
        ("what bundled nanos ask for", TRAFFIC, asking),
    ]
    found, after = {"settings": vars(options), "within": records, "asked": traffic}, verdict(records, traffic)
    publish("offload", options, found, *tables, after="\n\n".join(after) + "\n")
