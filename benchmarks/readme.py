"""The README's picture and its table of language models beside transformers', from the files of benchmarks/results.

python -m zoo.benchmarks.readme          # `zoo bench families` does so too, after a run over all of them
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.benchmarks.common import RESULTS, write_whole
from zoo.benchmarks.report.models import rows
from zoo.benchmarks.report.pictures import overview
from zoo.benchmarks.report.results import Results

README = RESULTS.parent.parent / "README.md"
SECTION = re.compile(r"(?<=<!-- families -->\n).*?(?=<!-- /families -->)", re.DOTALL)
NAMES = {
    "llama": "Llama", "qwen3": "Qwen3", "mamba": "Mamba", "falcon_mamba": "Falcon Mamba", "mamba2": "Mamba-2",
    "falcon_h1": "Falcon-H1", "recurrent_gemma": "RecurrentGemma", "lfm2": "LFM2", "qwen3_next": "Qwen3-Next",
    "granite_hybrid": "Granite 4 hybrids", "nemotron_h": "Nemotron-H", "deepseek_v2": "DeepSeek-V2",
    "deepseek_v3": "DeepSeek-V3", "gpt_oss": "gpt-oss", "minimax": "MiniMax", "xlstm": "xLSTM",
    "kimi_linear": "Kimi Linear", "olmoe": "OLMoE", "qwen3_moe": "Qwen3-MoE", "based": "BASED", "s4": "S4",
    "s4d": "S4D", "longconv": "LongConv", "scatterbrain": "Scatterbrain", "titans_lmm": "Titans LMM",
    "titans_mac": "Titans MAC", "titans_mag": "Titans MAG", "titans_mal": "Titans MAL", "seqboat": "SeqBoat",
}  # fmt: skip
COLUMNS = {"forward": "prefill, T 512", "training": "training step, T 512", "prefill": "decode: 16 and 20 steps"}


def section(results: Mapping[str, Any]) -> str:
    """A sentence on the run, and a row a family: transformers' time over ours, and how far the results are apart."""
    machine: Mapping[str, Any] = results["machine"]
    rows: dict[str, Any] = {}
    for record in results["comparison"]:
        theirs, ours = (statistics.median(record["runs"][side]) for side in ("transformers", "zoo"))
        kind, ratio = record["measure"].partition(" ")[0].strip(","), theirs / ours
        row = rows.setdefault(record["name"], {"apart": 0.0})
        row[kind] = f"{ratio:.0f}" if ratio >= 100 else f"{ratio:.2f}"
        row["apart"] = max(row["apart"], record["apart"])
    swept = results["over_length"]
    when, cores = machine["date"].split()[0], machine["threads"]
    lines = [
        f"`zoo bench families` ({when}, {cores} CPU cores, float32, batch 1, two blocks of width 768, the same weights",
        "on both sides; [all figures](benchmarks/results/families.md)): the time of transformers over ours, and the",
        "largest difference of any logit or loss.",
        "",
        f"| | {' | '.join(COLUMNS.values())} | difference |",
        f"| ---{' | ---' * len(COLUMNS)} | --- |",
        *(
            f"| {NAMES.get(name, name.title())} | {' | '.join(row[kind] for kind in COLUMNS)} | {row['apart']:.0e} |"
            for name, row in rows.items()
        ),
    ]
    if swept:
        names = ", ".join(NAMES.get(r["family"], str(r["family"]).title()) for r in swept)
        powers = [r["p"] for r in swept]
        span = f"{min(powers):.2f} to {max(powers):.2f}"
        lines += ["", f"From T 512 to 8192 the forward time of {names} grows with an exponent of {span}."]
    return "\n".join(lines) + "\n"


def picture(folder: Path = RESULTS) -> str:
    """The SVG above the text: of what is in ``costs.json`` and of the scores of the bundled weights."""
    results = Results(folder)
    return overview(rows(results, "*_nano", count=False), results)


def refresh(readme: Path = README, results: Path = RESULTS / "families.json") -> None:
    """Write the section between the marks of the README anew, and the picture beside the results.

    Raises:
        ValueError: for a README without the marks.
    """
    text = readme.read_text(encoding="utf-8")
    if SECTION.search(text) is None:
        raise ValueError(f"{readme} has no section between <!-- families --> and <!-- /families -->")
    new = section(json.loads(results.read_text(encoding="utf-8")))
    write_whole(readme, SECTION.sub(lambda _: new, text))
    if (results.parent / "costs.json").exists():
        write_whole(results.parent / "overview.svg", picture(results.parent))


if __name__ == "__main__":
    refresh()
