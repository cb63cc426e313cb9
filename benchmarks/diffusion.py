"""Diffusion models of few bits and few blocks: how far what they draw is from what the plain model draws.

    zoo bench diffusion                              # writes benchmarks/results/diffusion.{json,md,png}
    zoo bench diffusion --models dit_nano --forms '*W4A8*' --no-save
    zoo bench diffusion --redraw                     # the tables and the picture of what was measured

The bundled dit_nano and unet_nano draw digits. Each form is calibrated on what the model is called with while it draws
11 images in 10 steps, no data. Then, from other noise: the relative squared error of its velocities on the plain
model's way, over all times and in three parts of it; the relative squared distance of 40 images in 20 steps from those
that the plain model draws of the same noise; and the loss on 120 test digits. W4A8: weights of 4 bits, inputs of 8.

Expected, of U-Nets with hundreds of millions of parameters by the authors: Q-Diffusion in 4 bits is far nearer than
rounding, and needs inputs of all times and scales for both sides of a joint (arXiv 2302.04304); ViDiT-Q loses nothing
in W8A8 and little in W4A8, less by a grid a token than by one a tensor, and less by factors for each range of times
than by one (arXiv 2406.02540); MixDQ in W4A8 loses less than the same bits for all (arXiv 2405.17873); attention in
the order of its axes needs 20 to 30 % of the blocks, fewer than in the given order (arXiv 2506.16054).
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import zoo
from zoo.benchmarks.common import RESULTS, command_line, last_paragraph, machine, publish, telling, write_result
from zoo.benchmarks.exits import digits
from zoo.benchmarks.tables import panels
from zoo.generative import picture, pixels, reorder_attention
from zoo.layers.attention.reordered import ReorderedProduct
from zoo.layers.quant import count_parameters, stored_bytes
from zoo.quantize import Calibration
from zoo.registry import lookup
from zoo.train.tasks.diffusion import velocity_errors

PLAIN = "float32"
COUNT, STEPS = 11, 10  # images and steps of the calibration
IMAGES, DRAWING = 40, 20  # and of what is compared
TESTED = 120  # test digits
PARTS = 3  # of the times
BLOCK = 4  # tokens, of 16 in all
ROW = 1 << 20  # a group as long as any row
WHOLE = {"split": False, "search": False, "steps": 0}  # a grid a tensor, as it comes
W4A8, W8A8, W4A4 = ({"bits": bits, "activation_bits": inputs} for bits, inputs in ((4, 8), (8, 8), (4, 4)))
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "W4, to nearest": ("rtn", {"bits": 4, "group_size": ROW}),
    "W4, Q-Diffusion": ("q_diffusion", {"bits": 4}),
    "W4, MixDQ": ("mixdq", {"bits": 4}),
    "W8A8, a tensor": ("q_diffusion", {**W8A8, **WHOLE}),
    "W8A8, ViDiT-Q": ("vidit_q", W8A8),
    "W4A8, a tensor": ("q_diffusion", {**W4A8, **WHOLE}),
    "W4A8, Q-Diffusion": ("q_diffusion", W4A8),
    "W4A8, Q-Diffusion, last time": ("q_diffusion", W4A8),
    "W4A8, MixDQ": ("mixdq", W4A8),
    "W4A8, a token": ("vidit_q", {**W4A8, "steps": 0}),
    "W4A8, ViDiT-Q, one range": ("vidit_q", {**W4A8, "times": ()}),
    "W4A8, ViDiT-Q": ("vidit_q", W4A8),
    "W4A8, ViDiT-Q, turned": ("vidit_q", {**W4A8, "rotate": True}),
    "W8A4, a tensor": ("q_diffusion", {"bits": 8, "activation_bits": 4, **WHOLE}),
    "W8A4, Q-Diffusion": ("q_diffusion", {"bits": 8, "activation_bits": 4}),
    "W8A4, Q-Diffusion, not split": ("q_diffusion", {"bits": 8, "activation_bits": 4, "split": False}),
    "W4A4, a token": ("vidit_q", {**W4A4, "steps": 0}),
    "W4A4, ViDiT-Q": ("vidit_q", W4A4),
    "W4A4, ViDiT-Q, turned": ("vidit_q", {**W4A4, "rotate": True}),
    "blocks, 95 %": ("reorder", {"mass": 0.95}),
    "blocks, 95 %, as given": ("reorder", {"mass": 0.95, "reorder": False}),
    "blocks, 80 %": ("reorder", {"mass": 0.8}),
    "blocks, 80 %, as given": ("reorder", {"mass": 0.8, "reorder": False}),
    "blocks, 4 bits": ("reorder", {"mass": 1.0, "bits": 4, "evenness": 1.0}),
    "blocks, 4 bits, as given": ("reorder", {"mass": 1.0, "bits": 4, "reorder": False}),
}  # fmt: skip
SKIP = {"dit_nano": ("patch_embed.weight", "time.*", "classes.weight", "head.*")}  # as ViDiT-Q's authors leave them
ONLY = {  # what a paper is about: U-Nets that join, with texts, and transformers
    **dict.fromkeys(("W8A4, Q-Diffusion, not split", "W4, MixDQ", "W4A8, MixDQ"), ("unet_nano",)),
    **dict.fromkeys(
        (
            "W4A8, a token", "W4A8, ViDiT-Q, one range", "W4A8, ViDiT-Q, turned", "W4A4, a token", "W4A4, ViDiT-Q",
            "W4A4, ViDiT-Q, turned",
        ), ("dit_nano",),
    ),
}  # fmt: skip
DRAWN = (
    PLAIN, "W4, to nearest", "W4, Q-Diffusion", "W4A8, a tensor", "W4A8, Q-Diffusion", "W4A8, ViDiT-Q", "W4A8, MixDQ",
    "W4A4, ViDiT-Q", "blocks, 80 %",
)  # fmt: skip
MODELS = ("dit_nano", "unet_nano")


class Expected(NamedTuple):
    """What is expected of a form's figure beside another form's, by whom."""

    form: str
    figure: str
    says: str
    source: str
    beside: str | None
    most: float
    """The figure, or its ratio to that of ``beside``, may be."""

    def value(self, found: Mapping[str, Mapping[str, float]]) -> float:
        """Figure or ratio; not a number where one was not measured."""
        if self.form not in found or (self.beside is not None and self.beside not in found):
            return float("nan")
        own = found[self.form][self.figure]
        return own if self.beside is None else own / max(found[self.beside][self.figure], 1e-30)


EXPECTED = [
    Expected("W4, Q-Diffusion", "images", "a tenth of rounding's distance", "FID +2.34 against > 100: 2302.04304",
             "W4, to nearest", 0.1),
    Expected("W4A8, Q-Diffusion", "velocity", "nearer by all times than by the last", "2302.04304",
             "W4A8, Q-Diffusion, last time", 1.0),
    Expected("W8A4, Q-Diffusion", "velocity", "nearer when split", "2302.04304",
             "W8A4, Q-Diffusion, not split", 1.0),
    Expected("W8A8, ViDiT-Q", "images", "lossless: at most 0.001", "2406.02540, abstract", None, 0.001),
    Expected("W4A8, ViDiT-Q", "images", "negligible: at most 0.01", "2406.02540, abstract", None, 0.01),
    Expected("W4A8, a token", "velocity", "nearer than a tensor", "2406.02540", "W4A8, a tensor", 1.0),
    Expected("W4A8, ViDiT-Q", "velocity", "nearer by two ranges than by one", "2406.02540",
             "W4A8, ViDiT-Q, one range", 1.0),
    Expected("W4A4, ViDiT-Q, turned", "velocity", "nearer when turned", "2406.02540, a later version",
             "W4A4, ViDiT-Q", 1.0),
    Expected("W4A8, MixDQ", "images", "negligible: at most 0.01", "2405.17873, abstract", None, 0.01),
    Expected("W4, MixDQ", "velocity", "nearer than 4 bits for all", "2405.17873", "W4, to nearest", 1.0),
    Expected("blocks, 95 %", "density", "20 to 30 % of the blocks", "2506.16054, abstract", None, 0.3),
    Expected("blocks, 95 %", "density", "fewer blocks than as given", "2506.16054", "blocks, 95 %, as given", 1.0),
    Expected("blocks, 4 bits", "velocity", "rounds better than as given", "2506.16054",
             "blocks, 4 bits, as given", 1.0),
]  # fmt: skip


class Subject:
    """A trained model, what it is calibrated with, and what it says and draws."""

    def __init__(self, name: str):
        self.name = name
        self.model: Any = zoo.create_model(name, pretrained=True).eval()
        self.seen = Calibration.of_samples(self.model, count=COUNT, steps=STEPS)
        self.way = Calibration.of_samples(self.model, count=IMAGES, steps=DRAWING, seed=1)
        self.said, self.images = self.says(self.model), self.draws(self.model)
        self.loss = self.scored(self.model)

    @torch.no_grad()
    def says(self, model: Any) -> Tensor:
        """Velocities (steps, images, ...) on the plain model's way."""
        return torch.stack(list(self.way.outputs(model)))

    def draws(self, model: Any) -> Tensor:
        """Images of the same noise and classes for every model."""
        classes = torch.arange(IMAGES) % self.model.config.num_classes
        return model.sample(IMAGES, classes=classes, steps=DRAWING, generator=torch.Generator().manual_seed(2))

    @torch.no_grad()
    def scored(self, model: Any) -> float:
        """Mean error of the velocity on test digits."""
        images, classes = digits("test")[0]
        return velocity_errors(model, images[:TESTED], classes[:TESTED]).mean().item()

    def made(self, form: str) -> Any:
        """The model in a form."""
        method, options = FORMS[form]
        model = copy.deepcopy(self.model)
        if method == "reorder":
            return reorder_attention(model, calibration=self.seen, block_size=BLOCK, **options)
        seen = self.seen if not form.endswith("last time") else Calibration([self.seen.batches[-1]] * STEPS)
        return zoo.quantize(model, method, calibration=seen, skip=SKIP.get(self.name, ()), **options)

    def measured(self, form: str) -> dict[str, Any]:
        """A record of a form; of those that are shown with pixels of an image a class, as hexadecimals."""
        model = self.model if form == PLAIN else self.made(form)
        said, images = self.says(model), self.draws(model)
        parts = zip(said.tensor_split(PARTS), self.said.tensor_split(PARTS), strict=True)
        products = [module for module in model.modules() if isinstance(module, ReorderedProduct)]
        density = torch.cat([product.density for product in products]).mean().item() if products else 1.0
        record = {
            "model": self.name, "form": form, "bytes": stored_bytes(model),
            "bits_a_weight": 8 * stored_bytes(model) / count_parameters(model), "velocity": apart(said, self.said),
            "parts": [apart(*part) for part in parts], "images": apart(images, self.images), "density": density,
            "loss": self.scored(model) - self.loss,
        }  # fmt: skip
        if form in DRAWN:
            shown = pixels(model, images)[: model.config.num_classes, 0]
            record["drawn"] = (255 * shown).round().byte().numpy().tobytes().hex()
        return record


def apart(found: Tensor, expected: Tensor) -> float:
    """Squared distance, relative."""
    return ((found - expected).square().sum() / expected.square().sum()).item()


def measure(
    name: str, forms: Sequence[str], each: Callable[[dict[str, Any]], None] = lambda record: None
) -> list[dict[str, Any]]:
    """A record a form of a model; ``each`` gets them one by one."""
    subject, records = Subject(name), []
    for form in forms:
        records.append(subject.measured(form))
        each(records[-1])
    return records


def forms_of(name: str, wanted: Sequence[str]) -> list[str]:
    """Those of a model that one of the patterns fits, after the plain one."""
    able = [form for form in FORMS if name in ONLY.get(form, (name,))]
    return [PLAIN, *(form for form in able if any(fnmatch(form, pattern) for pattern in wanted))]


def figures(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Mapping[str, float]]]:
    """Model -> form -> its record."""
    found: dict[str, dict[str, Mapping[str, float]]] = {}
    for record in records:
        found.setdefault(record["model"], {})[record["form"]] = record
    return found


def show(records: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """A row a model and form."""
    rows = [
        [
            f"{r['model']}, {r['form']}", f"{r['bits_a_weight']:.2f}", f"{r['density']:.0%}",
            f"{100 * r['velocity']:.3f}",
            *(f"{100 * part:.3f}" for part in r["parts"]), f"{100 * r['images']:.3f}", f"{r['loss']:+.4f}",
        ]
        for r in records
    ]  # fmt: skip
    columns = ["", "bits a weight", "blocks", "velocity, % off", "near noise", "middle", "near image", "images, % off"]
    return [*columns, "loss"], rows


def show_expected(records: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """A row an expectation, a column a model; what was not measured is left out."""
    found, rows = figures(records), []
    for one in EXPECTED:
        values = [one.value(forms) for forms in found.values()]
        verdicts = ["" if v != v else f"{v:.4g} {'met' if v <= one.most else 'missed'}" for v in values]
        what = one.figure if one.beside is None else f"{one.figure} over {one.beside}'s"
        rows.append([f"{one.form}: {one.says} ({one.source}); {what}, at most {one.most:g}", *verdicts])
    return ["expected", *found], rows


def plot(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A picture a model: a row a form, a column a class, of the same noise."""
    drawn = {name: {f: r["drawn"] for f, r in held.items() if "drawn" in r} for name, held in figures(records).items()}
    with panels(path, 1, len(drawn), (6 * len(drawn), 6), dpi=100) as axes:
        for axis, (name, rows) in zip(axes[0], drawn.items(), strict=True):
            config: Any = lookup(name).configure()
            shape = (-1, 1, *config.image_shape)
            images = [torch.tensor(list(bytes.fromhex(str(text)))).view(shape) / 255 for text in rows.values()]
            axis.imshow(picture(torch.cat(images), config.num_classes, 6), cmap="gray")
            height = 6 * shape[-2] + 1
            axis.set_yticks([height * (index + 0.5) for index in range(len(rows))], list(rows), fontsize=8)
            axis.set_xticks([])
            axis.set_title(name)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("diffusion", __doc__, patterns=MODELS, goes_on=True)
    parser.add_argument("--forms", nargs="+", default=["*"], metavar="PATTERN", help=f"of {'; '.join(FORMS)}")
    parser.add_argument("--redraw", action="store_true", help="measure nothing: tables and picture of the result file")
    parser.add_argument("--fresh", action="store_true", help="measure again what the results hold")
    options: argparse.Namespace = parser.parse_args(arguments)
    path, here = RESULTS / "diffusion.json", machine()
    held = json.loads(path.read_text(encoding="utf-8")) if path.exists() and not options.fresh else {"records": []}
    found = {(r["model"], r["form"]): r for r in held["records"]}
    names = [] if options.redraw else [name for name in MODELS if any(fnmatch(name, one) for one in options.models)]
    jobs = {name: [f for f in forms_of(name, options.forms) if (name, f) not in found] for name in names}
    with telling(sum(map(len, jobs.values()))) as say:

        def keep(record: dict[str, Any]) -> None:
            say(f"{record['model']}, {record['form']}")
            found[record["model"], record["form"]] = record
            if not options.no_save:
                write_result(path, {"machine": here, "records": in_order(found)})

        for name, forms in jobs.items():
            if forms:
                measure(name, forms, keep)
    records = in_order(found)
    tables = [
        ("What was expected", *show_expected(records)),
        ("Relative squared distance from the plain model", *show(records)),
    ]
    result = {"machine": held["machine"] if options.redraw else here, "records": records}
    publish("diffusion", options, result, *tables, before=f"{last_paragraph(__doc__)}\n\n", plot=partial(plot, records))


def in_order(found: Mapping[tuple[str, str], dict[str, Any]]) -> list[dict[str, Any]]:
    """Records by model and form, as they are listed above."""
    return [found[key] for key in itertools.product(MODELS, (PLAIN, *FORMS)) if key in found]
