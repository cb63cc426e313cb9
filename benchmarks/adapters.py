"""Adapters beside full training: what they train and take, and what they learn of a small task.

    zoo bench adapters                # writes benchmarks/results/adapters.{json,md}
    zoo bench adapters --steps 20 --no-save

Memory and time are those of a training step, AdamW's first included, of four blocks of width 512 on 1,024 tokens of one
byte each, in float32; a peak is that of a fresh process, above the model. Of IST it is the mean over the layer that
learns. MobileTL is measured on MobileNetV2-like blocks (mcunet_in3, eight images of 96 pixels) beside the same three
blocks trained whole.

Scores: bits per byte of held-out modules of Python's library, by the bundled transformer_nano, which has learnt
documentation, after some steps of each method; where attention is kept to groups on 512 bytes, twice what it was
trained on, as a share of what LoRA gains there with whole attention. Images: accuracy of mcunet_nano, which knows
digits, on digits turned by 90 degrees in negative, with a fresh head. Stream: which of ten modules a text is from, two
more in each of five tasks, all asked at the end.

Expectations are the papers' own, of large models on GPUs: 62 arXiv 2503.01905, 27 arXiv 2206.06522, 69 arXiv
2410.11772, 54 arXiv 2406.05678, 78 arXiv 2212.03246, 43 arXiv 2309.14763, 47 arXiv 2404.18322.
"""

from __future__ import annotations

import copy
import logging
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from lightning import Trainer, seed_everything
from torch import Tensor, nn

import zoo
from zoo.adapt import LoRA, own_names
from zoo.benchmarks.common import MIB, command_line, fresh_peak, interleaved, medians, peak_memory, publish, telling
from zoo.train.adapt import DynamicConPET, ImportanceSampling, StaticConPET
from zoo.train.data import DigitsDataModule, SourceCodeDataModule
from zoo.train.quiet import quiet
from zoo.train.tasks import LanguageModeling

SHAPE: dict[str, Any] = {
    "vocab_size": 256, "dim": 512, "depth": 4, "num_heads": 8, "num_kv_heads": 8, "mlp_dim": 1408
}  # fmt: skip
LENGTH, NANO = 1024, "transformer_nano"
FULL, GROUPS = "all weights", "LongLoRA's groups"
METHODS: dict[str, tuple[str | None, dict[str, Any], float]] = {  # name -> adapter, options, learning rate
    FULL: (None, {}, 4e-3),
    "LoRA": ("lora", {"rank": 8}, 1e-2),
    "DoRA": ("dora", {"rank": 8}, 1e-2),
    "PaCA": ("paca", {"rank": 16}, 1e-2),
    "LST": ("ladder", {"reduction": 4}, 1e-2),
    "IST": ("lora", {"rank": 8}, 1e-2),
    "SinkLoRA": ("sink_lora", {"rank": 8}, 1e-2),
}
LONG = {  # at twice the length
    "LoRA, whole attention": ("lora", {"rank": 8, "targets": ["*_proj"]}, 1e-2),
    "SinkLoRA": METHODS["SinkLoRA"],
    GROUPS: ("sink_lora", {"rank": 8, "sinks": 0, "returned": 0.0}, 1e-2),
}


def adapted(name: str) -> nn.Module:
    """The model of a step, as a method trains it."""
    torch.manual_seed(0)
    kind, options, _ = METHODS[name]
    model = zoo.create_model("transformer_130m", **SHAPE)
    if kind is not None:
        zoo.adapt(model, kind, **(options | ({"reduction": 8} if kind == "ladder" else {})))
    return model.train()


def step_of(model: nn.Module, tokens: Tensor) -> float:
    """Forward, backward and the first step of AdamW."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    loss = model(tokens, labels=tokens)
    loss.backward()
    optimizer.step()
    model.zero_grad()
    return float(loss.detach())


def peak(name: str, layer: int | None = None) -> int:
    """Bytes of a step in this process, which must be fresh; with IST only one layer's adapters learn."""
    model, tokens = adapted(name), torch.arange(LENGTH)[None] % 256
    for key, parameter in model.named_parameters() if layer is not None else ():
        parameter.requires_grad_(parameter.requires_grad and f"blocks.{layer}." in key)
    step_of(model, tokens[:, :32])
    return peak_memory(lambda: step_of(model, tokens))


def lean(kind: str) -> nn.Module:
    """A network of inverted residuals whose last three learn."""
    torch.manual_seed(0)
    model: Any = zoo.adapt(zoo.create_model("mcunet_in3", img_size=96), "mobiletl", blocks=3, also=["head.*"])
    learns = [name.rpartition(".")[0] for name in own_names(model) if ".project.bn.weight" in name]
    if kind == FULL:
        model = zoo.merge_adapter(model).requires_grad_(False)
        for name in learns:
            model.get_submodule(name.split(".project")[0]).requires_grad_(True)
        model.head.requires_grad_(True)
    return model.train()


def peak_of_images(kind: str) -> int:
    model, images = lean(kind), torch.randn(8, 3, 96, 96)
    step_of_images(model, images[:1])
    return peak_memory(lambda: step_of_images(model, images))


def step_of_images(model: nn.Module, images: Tensor) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    F.cross_entropy(model(images), torch.zeros(len(images), dtype=torch.long)).backward()
    optimizer.step()
    model.zero_grad()


def tune(name: str, steps: int, length: int = 256, method: Any = None) -> tuple[float, nn.Module]:
    """Bits per byte of held-out source code after some steps (0: as it was), and the model."""
    kind, options, lr = method or METHODS[name]
    seed_everything(0, verbose=False)
    arguments: dict[str, Any] = {"pretrained": True}
    if kind is not None:
        arguments["adapter"] = {"kind": kind, **options}
    task = LanguageModeling(
        NANO, arguments, lr=lr, weight_decay=0.0, betas=(0.9, 0.95), warmup_steps=5, schedule_steps=max(1, steps)
    )
    data = SourceCodeDataModule(
        seq_len=length, batch_size=1024 // length, eval_batch_size=4096 // length, windows="random"
    )
    callbacks: list[Any] = [ImportanceSampling()] if name == "IST" else []
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with quiet():
        trainer = Trainer(
            max_steps=steps, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
            enable_model_summary=False, callbacks=callbacks, limit_val_batches=0, limit_test_batches=6,
            gradient_clip_val=1.0,
        )  # fmt: skip
        if steps:
            trainer.fit(task, data)
        score = trainer.test(task, data, verbose=False)[0]["test/bits_per_byte"]
    return float(score), task.trained


def images(steps: int) -> dict[str, tuple[int, float]]:
    """Trainable parameters and accuracy of each way to tune mcunet_nano."""
    data = DigitsDataModule()
    data.setup()
    x, y = (torch.cat(part) for part in zip(*data.train_dataloader(), strict=True))
    test, truth = (torch.cat(part) for part in zip(*data.test_dataloader(), strict=True))
    x, test = -x.rot90(1, (2, 3)), -test.rot90(1, (2, 3))
    found = {}
    for way in ("head alone", FULL, "MobileTL"):
        torch.manual_seed(0)
        model: Any = zoo.create_model("mcunet_nano", pretrained=True)
        model.reset_classifier(10)
        if way == "MobileTL":
            zoo.adapt(model, "mobiletl", blocks=3, also=["head.*"])
        elif way == "head alone":
            model.requires_grad_(False).head.requires_grad_(True)
        learns = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learns, lr=3e-3, weight_decay=0.0)
        draws = torch.Generator().manual_seed(0)
        model.train(way != "head alone")
        for _ in range(2 * steps):
            index = torch.randint(len(x), (32,), generator=draws)
            optimizer.zero_grad()
            F.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()
        with torch.no_grad():
            accuracy = (model.eval()(test).argmax(1) == truth).float().mean().item()
        found[way] = sum(p.numel() for p in learns), accuracy
    return found


def stream(steps: int) -> dict[str, float]:
    """Accuracy over all ten classes at the end: by adapters alone, and by ConPET."""
    modules = SourceCodeDataModule().documents("train")
    modules = sorted(modules, key=len)[-10:]
    width, tasks = 48, []
    for number in range(0, 10, 2):
        items = []
        for label in (number, number + 1):
            text = torch.tensor(list(modules[label].encode()[: width * 160]))
            items.append((text[: len(text) // width * width].view(-1, width), label))
        x = torch.cat([part for part, _ in items])
        y = torch.cat([torch.full((len(part),), label) for part, label in items])
        held = torch.arange(len(x)) % 4 == 0
        tasks.append(((x[~held], y[~held]), (x[held], y[held])))
    x, y = (torch.cat(part) for part in zip(*(test for _, test in tasks), strict=True))
    found = {}
    base = zoo.create_model(NANO, pretrained=True)
    for way, kind, remembers in (
        ("LoRA alone", StaticConPET, False),
        ("ConPET, static", StaticConPET, True),
        ("ConPET, dynamic", DynamicConPET, True),
    ):
        torch.manual_seed(0)
        model = kind(base, LoRA(rank=4), steps=steps, batch_size=16, lr=3e-3)
        for train, _ in tasks:
            model.learn(*train)
            if not remembers:
                model.remembered.clear()
        with torch.no_grad():
            found[way] = (model(x).argmax(1) == y).float().mean().item()
    return found


def shared(models: dict[str, nn.Module]) -> tuple[int, int, float]:
    """Bytes of all these models apart and in one store, and the share of its base that one of them has there."""
    with tempfile.TemporaryDirectory() as folder:
        store = zoo.SharedModels(folder)
        base = zoo.create_model(NANO, pretrained=True)
        store.add("base", base)
        apart = sum(p.nbytes for p in base.parameters())
        for name, model in models.items():
            store.add(name, model)
            apart += sum(p.nbytes for p in model.parameters())
        return apart, store.blocks.nbytes, store.blocks.shared("base", "LoRA")


def measure(steps: int, budget: float, tick: Callable[[str], None]) -> dict[str, Any]:
    """Everything, as the record has it."""
    found: dict[str, Any] = {"steps": steps, "bytes": {}, "learns": {}, "score": {}, "long": {}}
    tokens = torch.arange(LENGTH)[None] % 256
    for name in METHODS:
        tick(f"memory: {name}")
        layers = range(SHAPE["depth"]) if name == "IST" else [None]
        found["bytes"][name] = statistics.mean(fresh_peak(peak, name, layer) for layer in layers)
        found["learns"][name] = sum(p.numel() for p in adapted(name).parameters() if p.requires_grad)
    tick("time")
    calls = {name: partial(step_of, adapted(name), tokens) for name in METHODS if name != "IST"}
    found["runs"], _ = interleaved(calls, budget=budget)
    tick("MobileTL: memory and time")
    found["image_bytes"] = {kind: fresh_peak(peak_of_images, kind) for kind in (FULL, "MobileTL")}
    batch = torch.randn(8, 3, 96, 96)
    found["image_runs"], _ = interleaved(
        {kind: partial(step_of_images, lean(kind), batch) for kind in (FULL, "MobileTL")}, budget=budget
    )
    found["score"]["as it was"] = tune(FULL, 0)[0]
    models = {}
    for name in METHODS:
        if name != "SinkLoRA":
            tick(f"tuning: {name}")
            found["score"][name], models[name] = tune(name, steps)
    found["long"]["as it was"] = tune(FULL, 0, 512)[0]
    for name, method in LONG.items():
        tick(f"tuning at 512: {name}")
        found["long"][name] = tune(name, steps, 512, method)[0]
    tick("images, stream, store")
    found["images"], found["stream"] = images(steps), stream(steps)
    found["store"] = shared({name: copy.deepcopy(models[name]) for name in ("LoRA", "DoRA", "PaCA", "LST")})
    return found


def verdict(met: bool) -> str:
    return "yes" if met else "no"


def tables(found: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, columns and rows of each table."""
    peaks, score, long = found["bytes"], found["score"], found["long"]
    seconds = medians(found["runs"])
    gain = {name: (long["as it was"] - bits) for name, bits in long.items()}
    whole = gain["LoRA, whole attention"] or float("nan")
    of_whole = {name: value / whole for name, value in gain.items()}
    rest = 1 - peaks["LST"] / peaks[FULL]
    lora, paca = peaks["LoRA"], peaks["PaCA"]
    expected = {
        FULL: ("", ""),
        "LoRA": ("", ""),
        "DoRA": ("score not above LoRA's (arXiv 2402.09353)", verdict(score["DoRA"] <= score["LoRA"])),
        "PaCA": (
            f"16 % less memory and 22 % less time than LoRA ({1 - paca / lora:.0%}, "
            f"{1 - seconds['PaCA'] / seconds['LoRA']:.0%})",
            verdict(paca <= 0.84 * lora and seconds["PaCA"] <= 0.78 * seconds["LoRA"]),
        ),
        "LST": (f"69 % less memory than all weights ({rest:.0%})", verdict(rest >= 0.69)),
        "IST": (
            "less memory than LoRA, score not above its",
            verdict(peaks["IST"] < lora and score["IST"] <= score["LoRA"]),
        ),
        "SinkLoRA": (
            f"92 % of the gain of whole attention ({of_whole['SinkLoRA']:.0%}), LongLoRA 39 % ({of_whole[GROUPS]:.0%})",
            verdict(of_whole["SinkLoRA"] >= 0.92),
        ),
    }
    papers = {"LoRA": "2106.09685", "DoRA": "2402.09353", "PaCA": "62", "LST": "27", "IST": "69", "SinkLoRA": "54"}
    columns = [
        "method", "paper", "learns", "peak (MiB)", "of all weights", "time (ms)", "bits per byte", "expected (found)",
        "met",
    ]  # fmt: skip
    rows = [
        [
            name, papers.get(name, ""), f"{found['learns'][name]:,}", f"{peaks[name] / MIB:,.1f}",
            f"{peaks[name] / peaks[FULL]:.2f}", f"{seconds[name] * 1e3:,.0f}" if name in seconds else "",
            f"{long['SinkLoRA']:.3f} at 512" if name == "SinkLoRA" else f"{score[name]:.3f}", *expected[name],
        ]
        for name in METHODS
    ]  # fmt: skip
    rows.append(["as it was", "", "0", "", "", "", f"{score['as it was']:.3f}; {long['as it was']:.3f} at 512", "", ""])
    less = 1 - found["image_bytes"]["MobileTL"] / found["image_bytes"][FULL]
    images = []
    for way, (learns, accuracy) in found["images"].items():
        known = way in found["image_bytes"]
        here = way == "MobileTL"
        images.append(
            [
                way, "78" if here else "", f"{learns:,}",
                f"{found['image_bytes'][way] / MIB:,.1f}" if known else "",
                f"{statistics.median(found['image_runs'][way]) * 1e3:,.0f}" if known else "", f"{accuracy:.1%}",
                f"46.3 % less memory ({less:.0%}), accuracy at most 0.6 points below all weights" if here else "",
                verdict(less >= 0.463 and accuracy >= found["images"][FULL][1] - 0.006) if here else "",
            ]
        )  # fmt: skip
    alone = found["stream"]["LoRA alone"]
    others = [
        [
            way, "43" if "ConPET" in way else "", f"{accuracy:.1%}",
            "5 points above adapters alone" if "ConPET" in way else "",
            verdict(accuracy >= alone + 0.05) if "ConPET" in way else "",
        ]
        for way, accuracy in found["stream"].items()
    ]  # fmt: skip
    apart, together, share = found["store"]
    others.append(
        ["BlockLLM's store", "47", f"{together / 1e6:.2f} of {apart / 1e6:.2f} MB", f"LoRA shares 100 % ({share:.0%})",
         verdict(share == 1)]
    )  # fmt: skip
    kinds = ["method", "paper", "learns", "peak (MiB)", "time (ms)", "accuracy", "expected (found)", "met"]
    return [
        (f"A transformer tuned, {found['steps']} steps", columns, rows),
        ("Inverted residuals tuned to turned digits", kinds, images),
        ("A stream of tasks, and models that share blocks", ["method", "paper", "found", "expected", "met"], others),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("adapters", __doc__, budget=8.0)
    parser.add_argument("--steps", type=int, default=60, help="of tuning")
    options = parser.parse_args(arguments)
    with telling() as say:
        found = measure(options.steps, options.budget, say)
    publish("adapters", options, found, *tables(found))
