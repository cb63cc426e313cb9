"""What ``zoo bench quant`` compares: forms of the bundled nanos, and what papers let one expect of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

TEXT = ("transformer_nano", "mamba2_nano", "falcon_h1_nano", "moe_nano")
IMAGES = ("vit_nano", "vim_nano", "vovnet_nano")
ROW = 1 << 20  # a group as long as any row
NEAR = 0.03  # bits per byte
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "8 bits": ("rtn", {"bits": 8}),
    "4 bits": ("rtn", {"bits": 4}),
    "4 bits, SmoothQuant+": ("smoothquant_plus", {"bits": 4, "steps": 10}),
    "4 bits a row": ("rtn", {"bits": 4, "group_size": ROW, "symmetric": True}),
    "4 bits a row, EasyQuant": ("easyquant", {"bits": 4, "group_size": ROW, "symmetric": True}),
    "FP4": ("rtn", {"layout": "e2m1"}),
    "FP4, LowBitFP": ("lowbit_fp", {"layout": "e2m1", "steps": 60}),
    "3 bits": ("rtn", {"bits": 3}),
    "3 bits, OmniQuant": ("omniquant", {"bits": 3, "epochs": 5}),
    "3 bits, BAQ": ("baq", {"bits": 3}),
    "2 bits": ("rtn", {"bits": 2}),
    "2 bits, OmniQuant": ("omniquant", {"bits": 2, "epochs": 5}),
    "3 bits, TopKLD": ("topkld", {"bits": 3, "epochs": 5}),
    "2 bits, TopKLD": ("topkld", {"bits": 2, "epochs": 10, "lr": 1e-3}),
    "4 bits, D2MoE": ("d2moe", {"bits": 4}),
    "3 bits a row": ("rtn", {"bits": 3, "group_size": ROW}),
    "3 bits a row, sketch": ("sketch", {"bits": 3, "group_size": ROW}),
    "4 bits, inputs of 8": ("rtn", {"bits": 4, "activation_bits": 8}),
    "4 bits, DGQ": ("dgq", {"bits": 4, "activation_bits": 8}),
    "2 bits, DB-LLM": ("db_llm", {}),
    "3 bits, binary": ("rtn", {"layout": "binary", "bits": 3}),
    "4 bits, bipolar": ("rtn", {"layout": "bipolar", "bits": 4}),
}
MARKS = dict(zip(METHODS, (
    "$8$", "$4$", "$4S$", "$4r$", "$4E$", "$f$", "$fL$", "$3$", "$3O$", "$3B$", "$2$", "$2O$", "$3T$", "$2T$", "$4D$",
    "$3r$", "$3K$", "$4i$", "$4G$", "$2D$", "$3b$", "$4p$",
), strict=True))  # fmt: skip
ONLY = {"4 bits, D2MoE": ("moe_nano",)}  # others have no experts
OF_TEXT = (
    "4 bits, SmoothQuant+", "3 bits, OmniQuant", "2 bits, OmniQuant", "3 bits, BAQ", "4 bits, inputs of 8",
    "4 bits, DGQ", "2 bits, DB-LLM", "3 bits, binary", "4 bits, bipolar",
)  # fmt: skip


class Claim(NamedTuple):
    """What is expected of text, by whom, and whether the bits per byte lost by each form of a model meet it."""

    form: str
    expected: str
    source: str
    met: Callable[[Mapping[str, float]], bool]


def less(form: str, other: str, share: float = 1.0) -> Callable[[Mapping[str, float]], bool]:
    """At most that share of what the other form loses; it is measured beside."""
    return lambda lost: lost[form] <= share * lost[other]


CLAIMS = [
    Claim("4 bits", f"at most {NEAR} lost", "the project's goal", lambda lost: lost["4 bits"] <= NEAR),
    Claim(
        "4 bits, SmoothQuant+", "at most 0.01 lost", "lossless: arXiv 2312.03788, abstract",
        lambda lost: lost["4 bits, SmoothQuant+"] <= 0.01,
    ),
    Claim(
        "4 bits a row, EasyQuant", "0.54 of rounding's loss", "LLaMA-7B: 6.29, 6.01, float 5.68; 2403.02775",
        less("4 bits a row, EasyQuant", "4 bits a row", 0.54),
    ),
    Claim(
        "FP4, LowBitFP", "less lost than with integers of 4 bits", "arXiv 2408.06995, abstract",
        less("FP4, LowBitFP", "4 bits"),
    ),
    Claim("3 bits, OmniQuant", "less lost than by rounding", "arXiv 2308.13137", less("3 bits, OmniQuant", "3 bits")),
    Claim("2 bits, OmniQuant", "less lost than by rounding", "arXiv 2308.13137", less("2 bits, OmniQuant", "2 bits")),
    Claim(
        "3 bits, BAQ", "half of rounding's loss", "perplexities up to 56 times lower than GPTQ's: arXiv 2506.05664",
        less("3 bits, BAQ", "3 bits", 0.5),
    ),
    Claim(
        "3 bits, TopKLD", "no more lost than with 4 bits to nearest", "one level better: arXiv 2501.06218, abstract",
        less("3 bits, TopKLD", "4 bits"),
    ),
    Claim(
        "2 bits, TopKLD", "no more lost than with 3 bits to nearest", "one level better: arXiv 2501.06218, abstract",
        less("2 bits, TopKLD", "3 bits"),
    ),
    Claim(
        "4 bits, D2MoE", "at most 0.02 more lost than with 4 bits", "perplexity 4.09, INT8 4.04: arXiv 2504.15299",
        lambda lost: lost["4 bits, D2MoE"] <= lost["4 bits"] + 0.02,
    ),
    Claim(
        "3 bits a row, sketch", "less lost than by rounding", "this project",
        less("3 bits a row, sketch", "3 bits a row"),
    ),
    Claim(
        "4 bits, DGQ", "no more lost than by rounding with inputs of 8 bits", "arXiv 2310.04836, abstract",
        less("4 bits, DGQ", "4 bits, inputs of 8"),
    ),
    Claim(
        "2 bits, DB-LLM", "less lost than with OmniQuant", "perplexity 7.23, before 9.64: arXiv 2402.11960, abstract",
        less("2 bits, DB-LLM", "2 bits, OmniQuant"),
    ),
    Claim(
        "3 bits, binary", "less lost than with integers", "its levels hold theirs: LUT-GEMM, arXiv 2206.09557, 3.1",
        less("3 bits, binary", "3 bits"),
    ),
    Claim(
        "4 bits, bipolar", f"at most {NEAR} lost", "the project's goal; no figure in arXiv 2409.17870",
        lambda lost: lost["4 bits, bipolar"] <= NEAR,
    ),
]  # fmt: skip


def forms_of(name: str, wanted: Sequence[str]) -> list[str]:
    """Those of a model among the wanted, in order, and to nearest what a wanted one is compared with."""
    beside = {
        "4 bits a row, EasyQuant": "4 bits a row", "FP4, LowBitFP": "4 bits", "3 bits, TopKLD": "4 bits",
        "2 bits, TopKLD": "3 bits", "3 bits a row, sketch": "3 bits a row", "4 bits, DGQ": "4 bits, inputs of 8",
        "2 bits, DB-LLM": "2 bits, OmniQuant",
    }  # fmt: skip
    compared = {beside.get(form, form.partition(",")[0]) for form in wanted}
    compared |= {beside.get(form, form.partition(",")[0]) for form in compared}
    able = [form for form in METHODS if name in ONLY.get(form, (name,)) and (name in TEXT or form not in OF_TEXT)]
    return [form for form in able if form in {*wanted, *compared}]
