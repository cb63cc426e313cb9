"""Weights of a few bits for any model: one door, and a method a file behind it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.layers.adapt import require_unadapted, undone_on_failure
from zoo.layers.quant import Format, Record, compressible, install, is_product, matrices, records
from zoo.layers.quant.between import between
from zoo.layers.quant.nearest import Nearest
from zoo.layers.quant.noise import WeightNoise
from zoo.layers.quant.replace import occupied, require_plain
from zoo.layers.sparse.masks import Mask
from zoo.patterns import check_used, matched, patterns_of
from zoo.quantize.baq import BAQ
from zoo.quantize.calibration import INPUTS, Calibration, Given
from zoo.quantize.d2moe import D2MoE
from zoo.quantize.db_llm import DBLLM
from zoo.quantize.dgq import DGQ
from zoo.quantize.easyquant import EasyQuant
from zoo.quantize.files import as_bytes, from_bytes
from zoo.quantize.lowbit_fp import LowBitFP
from zoo.quantize.method import METHODS, Method, method_of
from zoo.quantize.mixdq import MixDQ
from zoo.quantize.omniquant import OmniQuant
from zoo.quantize.q_diffusion import QDiffusion
from zoo.quantize.rounding import RTN
from zoo.quantize.seen import SEEN, fingerprint
from zoo.quantize.sketch import Sketch
from zoo.quantize.smoothquant_plus import SmoothQuantPlus
from zoo.quantize.store import Store, digest
from zoo.quantize.topkld import TopKLD
from zoo.quantize.vidit_q import ViDiTQ

LEARNING = (Nearest, WeightNoise, Mask)  # what training for a few bits or numbers puts between weights and layers
FORMAT = "format"  # among the tensors of a record that is kept

__all__ = [
    "BAQ",
    "DBLLM",
    "DGQ",
    "METHODS",
    "RTN",
    "Calibration",
    "D2MoE",
    "EasyQuant",
    "LowBitFP",
    "Method",
    "MixDQ",
    "OmniQuant",
    "QDiffusion",
    "Sketch",
    "SmoothQuantPlus",
    "TopKLD",
    "ViDiTQ",
    "quantize",
]


@torch.no_grad()
def quantize(
    model: nn.Module,
    method: str = "rtn",
    *,
    calibration: Given | None = None,
    skip: str | tuple[str, ...] = (),
    embeddings: bool = True,
    folder: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> nn.Module:
    """Replace the weights of a model by records of a few bits, in place.

    Linear layers, embeddings, heads, experts and convolutions are compressed; depthwise convolutions, norms, routers
    and what recurrences keep (A_log, D, dt_bias, ...) stay as they are. The model computes as before and saves as it
    is: ``zoo.save_model`` writes the records, ``create_model`` reads them.

    Their weights no longer learn: adapters do, beside them (``zoo.adapt(model, "peqa")``), by gradients that go through
    the records. Hence neither the train mode nor a call in it is an error, but the backward pass of one is while
    nobody has said what learns instead, as norms alone would, silently: ``zoo.layers.quant.FrozenError``, which says
    how. In eval mode gradients, of inputs for one, are free.

    Methods (those with a * are calibrated; all options of one: ``help(zoo.quantize.METHODS[name])``):
        rtn: round to nearest, in any layout.
        smoothquant_plus*: factors between norms and what reads them, arXiv 2312.03788.
        omniquant*: what is kept of ranges, and factors, learn block by block, arXiv 2308.13137.
        easyquant: outliers stay, the other ranges are optimised, without data, arXiv 2403.02775.
        baq*: bits where they help, rounding with feedback, arXiv 2506.05664.
        lowbit_fp*: learnt rounding to FP4, FP8 or integers, arXiv 2408.06995.
        dgq*: groups of four bits in rows of eight, arXiv 2310.04836.
        db_llm*: two bits as two planes of zeros and ones, distilled, arXiv 2402.11960.
        sketch*: tables of numbers for each row by k-means, arXiv 2410.06364.
        topkld*: distilled, the likeliest answers apart, arXiv 2501.06218.
        d2moe*: experts in several widths and a router of widths, arXiv 2504.15299.
        q_diffusion*: diffusion models, learnt rounding on inputs of all times, arXiv 2302.04304.
        vidit_q*: diffusion models, a grid a token and balanced channels, arXiv 2406.02540.
        mixdq*: diffusion models, bits by what a matrix does to images, arXiv 2405.17873.

    Args:
        model: of ``create_model``, or any module.
        method: one of the names above, those of ``zoo.quantize.METHODS``.
        calibration: what a calibrated method sees of the model's inputs: tokens (B, T) or images (B, C, H, W), a list
            of such batches, the path of a text or of a folder of images, or a ``Calibration``. A few numbers of it are
            kept, by which it is noticed when the model is scored on the same. A diffusion model draws its own.
        skip: patterns of names of weights that stay, such as "head.weight" or "blocks.0.*".
        embeddings: compress embeddings, and with them heads that are tied to one.
        folder: keeps what is done, a piece after another: the same call, of the same weights and calibration, goes on
            where it was broken off.
        progress: called with the pieces done, weights and what a method finds before, and all that are known of.
        options: fields of the method: for all of them ``bits`` (4, or as the layout has them), ``group_size`` (None:
            the largest divisor of a layer's inputs from 16 to 32, or all of them where there is none; an integer must
            divide them, or be no smaller), ``group_rows`` (1: outputs that share a scale), ``symmetric`` (False: zeros
            are stored), ``scale_dtype`` ("bfloat16"), ``layout`` ("int"; or another name of
            ``zoo.layers.quant.LAYOUTS``), and ``activation_bits`` (None; what linear layers and experts multiply is
            rounded to as many).

    Returns:
        ``model``. Of one without memory the records are empty, as round-to-nearest would make them.

    Raises:
        ValueError: for an unknown method, options out of range, a group that does not divide the inputs of a layer, a
            model that is compressed already, trained by ``zoo.round_weights``, ``zoo.noisy_weights`` or
            ``zoo.mask_weights``, emulated, sparse or parametrised, or has nothing to compress or weights that are no
            numbers, or a calibration that is missing or another model's.
            The model is as it was then, and after any other exception while it searches, Ctrl-C among them.
        TypeError: for an option that the method does not have, a calibration, method, skip or progress that is none of
            the above, or a model that a calibrated method must compare and that returns neither a tensor nor logits.
    """
    chosen = method_of(method, options)
    patterns = patterns_of(skip)
    if progress is not None and not callable(progress):
        raise TypeError(f"progress must be called with the pieces done and all of them, got {progress!r}")
    require_unadapted(model, "zoo.quantize")
    if done := records(model):
        raise ValueError(
            f"the model is compressed already, {next(iter(done))} among others: quantise the float model that it was "
            "made from"
        )
    if any(True for kind in LEARNING for _ in between(model, kind)):
        raise ValueError(
            "the model is being trained for a few bits or numbers: zoo.settle(model) ends that, then quantise it"
        )
    if any(getattr(change, "kind", None) == "emulated" for change in getattr(model, "changes", ())):
        raise ValueError("the model is emulated in a format: quantise the model that it was made from")
    require_plain(model, "zoo.quantize", patterns)
    chosen.check(model)
    seen = None if calibration is None else Calibration.of(calibration, model)
    if chosen.calibrated and seen is None and hasattr(model, "guided") and _has_memory(model):
        seen = Calibration.of_samples(model)
    if chosen.calibrated and seen is None:
        raise ValueError(f"{method} needs calibration=, {INPUTS}; the command --calibration PATH")
    if seen is not None:
        seen.check(model)
    weights = _wanted(model, patterns, embeddings)
    _check_groups(chosen, model, weights)
    if all(weight.is_meta for weight in weights.values()):
        if not isinstance(chosen, RTN):
            raise ValueError(f"without memory a model has no weights that {method} could see: only rtn needs none")
        install(model, {name: _format(chosen, model, name) for name in weights})
        model.quantization = {"method": method, **chosen.fields()}  # type: ignore[assignment]
        return model
    for name in weights:
        _check_numbers(model, name)
    store = Store(folder, _signature(chosen, method, model, weights, seen) if folder else {}, progress)
    store.expect(len({id(weight) for weight in weights.values()}))
    training = model.training
    made: dict[int, Record] = {}
    with undone_on_failure(model):
        known = chosen.prepare(model.eval(), list(weights), seen, store)
        for name in weights:
            weight = compressible(model)[name]
            if id(weight) not in made:
                made[id(weight)] = _record(chosen, model, name, known.get(name), store)
            weights[name] = made[id(weight)]
    install(model, weights)
    known_by = {SEEN: fingerprint(seen.inputs)} if seen is not None and chosen.calibrated else {}
    model.quantization = {"method": method, **chosen.fields(), **known_by}  # type: ignore[assignment]
    return model.train(training)


def _has_memory(model: nn.Module) -> bool:
    return not any(parameter.is_meta for parameter in model.parameters())


def _wanted(model: nn.Module, skip: tuple[str, ...], embeddings: bool) -> dict[str, Any]:
    """The weights to compress; one that is tied to a skipped one is skipped."""
    weights = compressible(model)
    tables = {id(module.weight) for module in model.modules() if type(module) is nn.Embedding}
    left = {id(weight) for name, weight in weights.items() if matched(name, skip)}
    left |= set() if embeddings else tables
    check_used(skip, [*weights, *occupied(model)])
    wanted = {name: weight for name, weight in weights.items() if id(weight) not in left}
    if not wanted:
        raise ValueError(
            f"there is nothing to compress in {type(model).__name__}: no linear layer, embedding, expert or convolution"
        )
    return wanted


def _signature(
    chosen: Method, method: str, model: nn.Module, names: Iterable[str], calibration: Calibration | None
) -> dict[str, Any]:
    """What makes a call another one."""
    seen = () if calibration is None else calibration.tensors
    chosen_names = torch.tensor(list("\n".join(names).encode()), dtype=torch.uint8)
    known = {"model": digest([*model.state_dict().values(), chosen_names]), "calibration": digest(seen)}
    return {"method": method, **chosen.fields(), **known}


def _check_groups(method: Method, model: nn.Module, weights: Iterable[str]) -> None:
    wrong = []
    for name in weights:
        try:
            columns = matrices(model, name).shape[-1]
            method.format(columns).groups(columns)
        except ValueError as error:
            wrong.append(f"{name}: {error}")
    if wrong:
        raise ValueError(f"{wrong[0]}{f' (and {len(wrong) - 1} more layers)' if wrong[1:] else ''}")


def _format(method: Method, model: nn.Module, name: str) -> Format:
    form = method.format(matrices(model, name).shape[-1])
    return form if is_product(model, name) else dataclasses.replace(form, activation_bits=None)


def _check_numbers(model: nn.Module, name: str) -> None:
    matrix = matrices(model, name)
    if not (matrix.is_meta or matrix.isfinite().all()):
        raise ValueError(f"{name} holds infinities or what is no number: there is no scale for it")


def _record(method: Method, model: nn.Module, name: str, known: Any, store: Store) -> Record:
    matrix = matrices(model, name)
    _check_numbers(model, name)

    def make() -> dict[str, Tensor]:
        record = method.record(matrix.float(), _format(method, model, name), known)
        return {FORMAT: as_bytes(record.format), **dict(record.named_parameters())}

    found = store.once(f"record.{name}", make)
    return Record.holding(matrix.shape, from_bytes(found[FORMAT]), found)
