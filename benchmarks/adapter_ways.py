"""What `zoo bench adapters` measures: ways to tune, a training step of each, and what each learns of a small task."""

from __future__ import annotations

import copy
import logging
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from lightning import Trainer, seed_everything
from torch import Tensor, nn

import zoo
from zoo.benchmarks.common import fresh_peak, interleaved, peak_memory
from zoo.layers.conv import InvertedResidual
from zoo.train.adapt import ContinualClassification, ImportanceSampling, PrunedLadder
from zoo.train.data import DataModule, DigitStreamDataModule, SourceCodeDataModule, TurnedDigitsDataModule
from zoo.train.quiet import quiet
from zoo.train.tasks import ImageClassification, LanguageModeling, Task

SHAPE: dict[str, dict[str, Any]] = {  # of a step that is measured
    "transformer_130m": {"vocab_size": 256, "dim": 512, "depth": 4, "num_heads": 8, "num_kv_heads": 8, "mlp_dim": 1408},
    "mamba2_130m": {"vocab_size": 256, "dim": 512, "depth": 4},
}
NANO = "transformer_nano"
LENGTH, SIZE, BATCH = 1024, 224, 32
CODE, LONG, BITS, IMAGES, STREAM = "source code", "source code of 512", "3 bits", "turned digits", "a stream of digits"
INT: dict[str, Any] = {"bits": 3}
TABLE: dict[str, Any] = {"layout": "table", "bits": 3}
FULL, LORA, PACA, IST, LST = "all weights", "LoRA", "PaCA", "IST", "LST"
WHOLE, SINK, GROUPS = "LoRA, whole attention", "SinkLoRA", "LongLoRA's groups"
ROUNDED, PEQA, L4Q, SKETCH = "LoRA, then rounded", "PEQA", "L4Q", "SketchTune"
MAMBA_FULL, MAMBA = "all weights of Mamba-2", "LoRA on recurrences"
HEAD, ALL_IMAGES, SAME, MOBILE = "head alone", "all weights of MCUNet", "the last blocks, whole", "MobileTL"
ALONE, STATIC, DYNAMIC = "LoRA, nothing remembered", "ConPET, static", "ConPET, dynamic"
STORE = "BlockLLM's store"


@dataclass(frozen=True)
class Way:
    """A way to tune.

    Attributes:
        paper: its number at arXiv.
        on: what is learnt.
        adapter: as ``create_model`` takes it; None: all weights.
        lr: of the tuning.
        quantize: as ``create_model`` takes it.
        nano: the model that learns.
        shape: the model of the step that is measured; None: none is.
        beside: a further callback.
    """

    paper: str
    on: str
    adapter: dict[str, Any] | None
    lr: float
    quantize: dict[str, Any] | None = None
    nano: str = NANO
    shape: str | None = "transformer_130m"
    beside: Callable[[], Any] | None = field(default=None, compare=False)

    def options(self, **adapter: Any) -> dict[str, Any]:
        """Of ``create_model``."""
        made: dict[str, Any] = {} if self.quantize is None else {"quantize": self.quantize}
        return made if self.adapter is None else made | {"adapter": self.adapter | adapter}


LORA_8 = {"kind": "lora", "rank": 8}
TEXT = {
    FULL: Way("", CODE, None, 4e-3),
    LORA: Way("2106.09685", CODE, LORA_8, 1e-2),
    "DoRA": Way("2402.09353", CODE, {"kind": "dora", "rank": 8}, 1e-2),
    PACA: Way("2503.01905", CODE, {"kind": "paca", "rank": 16}, 1e-2),
    LST: Way("2206.06522", CODE, {"kind": "ladder", "reduction": 4}, 1e-2, beside=partial(PrunedLadder, 64)),
    IST: Way("2410.11772", CODE, LORA_8, 1e-2, beside=ImportanceSampling),
    WHOLE: Way("", LONG, LORA_8 | {"targets": ["*_proj"]}, 1e-2),
    SINK: Way("2406.05678", LONG, {"kind": "sink_lora", "rank": 8}, 1e-2),
    GROUPS: Way("", LONG, {"kind": "sink_lora", "rank": 8, "sinks": 0, "returned": 0.0}, 1e-2, shape=None),
    PEQA: Way("2305.14152", BITS, {"kind": "peqa"}, 3e-4, INT),
    L4Q: Way("2402.04902", BITS, {"kind": "l4q", "rank": 8}, 3e-3, INT),
    SKETCH: Way("2410.06364", BITS, {"kind": "sketchtune"}, 1e-3, TABLE),
    MAMBA_FULL: Way("", CODE, None, 4e-3, nano="mamba2_nano", shape="mamba2_130m"),
    MAMBA: Way(
        "2406.00209", CODE, {"kind": "mamba_lora", "rank": 8, "ssm": True}, 1e-2, nano="mamba2_nano",
        shape="mamba2_130m",
    ),
}  # fmt: skip
STEPPED = {name: way for name, way in TEXT.items() if way.shape is not None}
LEAN: dict[str, Any] = {"kind": "mobiletl", "blocks": 3, "also": ["head.*"]}
CONPET = "2309.14763"
PAPERS = {MOBILE: "2212.03246", STATIC: CONPET, DYNAMIC: CONPET, STORE: "2404.18322"}


def prepared(name: str) -> nn.Module:
    """The model of a step, as a way trains it."""
    torch.manual_seed(0)
    way = STEPPED[name]
    wider = {"reduction": 8} if name == LST else {}
    return zoo.create_model(str(way.shape), **SHAPE[str(way.shape)], **way.options(**wider)).train()


def step_of(model: nn.Module, tokens: Tensor) -> None:
    """Forward, backward and the first step of AdamW."""
    _update(model, model(tokens, labels=tokens))


def _update(model: nn.Module, loss: Tensor) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    loss.backward()
    optimizer.step()
    model.zero_grad()


def peak(name: str, layer: int | None = None) -> int:
    """Bytes of a step in this process, which must be fresh; with IST only one layer's adapters learn."""
    model, tokens = prepared(name), torch.arange(LENGTH)[None] % 256
    for key, parameter in model.named_parameters() if layer is not None else ():
        parameter.requires_grad_(parameter.requires_grad and f"blocks.{layer}." in key)
    step_of(model, tokens[:, :32])
    return peak_memory(lambda: step_of(model, tokens))


def blocks(name: str) -> nn.Module:
    """The last three inverted residuals of MobileNetV2, as a way trains them; of all weights the whole of it."""
    torch.manual_seed(0)
    model: Any = zoo.create_model("mbv2_w035", img_size=SIZE)
    if name == MOBILE:
        zoo.adapt(model, "mobiletl", blocks=3)
    if name == ALL_IMAGES:
        return model.train()
    return nn.Sequential(*[m for m in model.modules() if isinstance(m, InvertedResidual)][-3:]).train()


def maps(name: str, batch: int) -> Tensor:
    """What they read."""
    shape = (3, SIZE, SIZE) if name == ALL_IMAGES else (56, SIZE // 32, SIZE // 32)
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(1))


def step_of_images(model: nn.Module, x: Tensor) -> None:
    _update(model, model(x).square().mean())


def peak_of_images(name: str) -> int:
    """Bytes of a step in this process, which must be fresh."""
    model, x = blocks(name), maps(name, BATCH)
    step_of_images(model, x[:2])
    return peak_memory(lambda: step_of_images(model, x))


def fit(task: Task, data: DataModule, *callbacks: Any, **options: Any) -> Trainer:
    """Train in silence."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with quiet():
        trainer = Trainer(
            logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
            enable_model_summary=False, callbacks=[*callbacks], limit_val_batches=0, **options,
        )  # fmt: skip
        trainer.fit(task, data)
    return trainer


def learnt(task: Task) -> int:
    """Numbers that learn."""
    return sum(p.numel() for p in task.trained.parameters() if p.requires_grad)


def score(model: nn.Module, length: int) -> float:
    """Bits per byte of held-out modules."""
    task = LanguageModeling(model, lr=1e-3)
    with quiet():
        trainer = Trainer(
            logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
            enable_model_summary=False, limit_test_batches=6,
        )  # fmt: skip
        found = trainer.test(task, code(length), verbose=False)
    return float(found[0]["test/bits_per_byte"])


def code(length: int) -> DataModule:
    return SourceCodeDataModule(
        seq_len=length, batch_size=1024 // length, eval_batch_size=4096 // length, windows="random"
    )


def tune(way: Way, steps: int) -> tuple[float, nn.Module]:
    """Bits per byte of held-out source code after some steps, and the model."""
    seed_everything(0, verbose=False)
    length = 512 if way.on == LONG else 256
    task = LanguageModeling(
        way.nano, {"pretrained": True, **way.options()}, lr=way.lr, weight_decay=0.0, betas=(0.9, 0.95),
        warmup_steps=5, schedule_steps=max(1, steps),
    )  # fmt: skip
    callbacks = [] if way.beside is None else [way.beside()]
    fit(task, code(length), *callbacks, max_steps=steps, gradient_clip_val=1.0)
    return score(task.trained, length), task.trained


def images(name: str, steps: int) -> tuple[int, float]:
    """Trainable parameters, and the accuracy on turned digits."""
    seed_everything(0, verbose=False)
    arguments: dict[str, Any] = {"pretrained": True, **({"adapter": LEAN} if name == MOBILE else {})}
    task = ImageClassification("mcunet_nano", arguments, lr=3e-3, weight_decay=0.0, schedule_steps=steps)
    task.configure_model()
    model: Any = task.trained
    if name in (HEAD, SAME):
        model.requires_grad_(False)
        found = [module for module in model.modules() if isinstance(module, InvertedResidual)][-3:]
        for module in (model.head, *(found if name == SAME else ())):
            module.requires_grad_(True)
        for module in model.modules():  # statistics of what is frozen stay, as of an adapter's
            if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad:
                module.frozen = True  # type: ignore[assignment]
    data = TurnedDigitsDataModule(batch_size=64, eval_batch_size=360)
    trainer = fit(task, data, max_steps=steps, gradient_clip_val=1.0)
    with quiet():
        (found_,) = trainer.test(task, data, verbose=False)
    return learnt(task), float(found_["test/acc1"])


def stream(name: str, steps: int) -> tuple[int, float]:
    """Trainable parameters, and the accuracy over all classes after the last task."""
    seed_everything(0, verbose=False)
    arguments = {"pretrained": True, "adapter": {"kind": "lora", "rank": 4}}
    task = ContinualClassification(
        "vit_nano", arguments, sizes=[2] * 5, dynamic=name == DYNAMIC, lr=3e-3, min_lr=3e-3, weight_decay=0.0
    )
    data = DigitStreamDataModule(items=32 * steps, keep=0 if name == ALONE else 32, eval_batch_size=360)
    trainer = fit(task, data, max_epochs=5)
    with quiet():
        (found,) = trainer.test(task, data, verbose=False)
    return learnt(task), float(found["test/acc1"])


def shared(models: dict[str, nn.Module]) -> tuple[int, int, float]:
    """Bytes of all these models apart and in one store, and the share of its base that one of them has there."""
    with tempfile.TemporaryDirectory() as folder:
        store = zoo.SharedModels(folder)
        base = zoo.create_model("transformer_nano", pretrained=True)
        store.add("base", base)
        apart = sum(p.nbytes for p in base.parameters())
        for name, model in models.items():
            store.add(name, model)
            apart += sum(p.nbytes for p in model.parameters())
        return apart, store.blocks.nbytes, store.blocks.shared("base", LORA)


def measure(steps: int, budget: float, tick: Callable[[str], None]) -> dict[str, Any]:
    """Everything, as the record has it."""
    found: dict[str, Any] = {"steps": steps, "bytes": {}, "learns": {}, "runs": {}, "score": {}}
    for name, way in STEPPED.items():
        tick(f"memory: {name}")
        layers = range(SHAPE[str(way.shape)]["depth"]) if name == IST else [None]
        peaks = [fresh_peak(peak, name, layer) for layer in layers]
        found["bytes"][name] = statistics.mean(peaks)
        found["learns"][name] = sum(p.numel() for p in prepared(name).parameters() if p.requires_grad)
    tokens = torch.arange(LENGTH)[None] % 256
    for shape in SHAPE:
        tick(f"time: {shape}")
        timed = [name for name, way in STEPPED.items() if way.shape == shape and name not in (IST, WHOLE)]
        calls = {name: partial(step_of, prepared(name), tokens) for name in timed}
        found["runs"] |= interleaved(calls, budget=budget)[0]
    for name in (ALL_IMAGES, SAME, MOBILE):
        tick(f"memory: {name}")
        found["bytes"][name] = fresh_peak(peak_of_images, name)
    calls = {name: partial(step_of_images, blocks(name), maps(name, BATCH)) for name in (ALL_IMAGES, SAME, MOBILE)}
    found["runs"] |= interleaved(calls, budget=budget)[0]
    models: dict[str, nn.Module] = {}
    for name, way in TEXT.items():
        tick(f"tuning: {name}")
        found["score"][name], models[name] = tune(way, steps)
    tick("as they were, and rounded")
    rounded = zoo.merge_adapter(copy.deepcopy(models[LORA]))
    found["score"][ROUNDED] = score(zoo.quantize(rounded, **INT), 256)
    ways: list[tuple[str, str, int, dict[str, Any]]] = [
        (CODE, "transformer_nano", 256, {}),
        (LONG, "transformer_nano", 512, {}),
        (BITS, "transformer_nano", 256, {"quantize": INT}),
        ("tables", "transformer_nano", 256, {"quantize": TABLE}),
        ("mamba", "mamba2_nano", 256, {}),
    ]
    for name, nano, length, options in ways:
        found["score"][f"before: {name}"] = score(zoo.create_model(nano, True, **options), length)
    for name in (HEAD, ALL_IMAGES, SAME, MOBILE):
        tick(f"images: {name}")
        found["learns"][name], found["score"][name] = images(name, 4 * steps)
    for name in (ALONE, STATIC, DYNAMIC):
        tick(f"stream: {name}")
        found["learns"][name], found["score"][name] = stream(name, steps)
    tick("store")
    found["store"] = shared({name: models[name] for name in (LORA, "DoRA", PACA, LST)})
    return found
