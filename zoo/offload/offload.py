"""A language model within a stated memory: most of its weights stay in files until they are used."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.checkpoints.io import read_config, whole
from zoo.factory import create_model
from zoo.language.base import LanguageModel
from zoo.layers.cache.budget import UNITS, Bytes, parsed
from zoo.offload.files import Piece, is_saved, listed, spilled
from zoo.offload.policy import Offload, Part, absent, held_of, hold, parameter_of, tensors_of
from zoo.offload.ring import TPILLM
from zoo.registry import nearest


def offload(
    model: Any, *, memory: int | str, policy: Offload | str = "tpi_llm", folder: str | os.PathLike[str] | None = None
) -> LanguageModel:
    """A language model whose weights take no more than ``memory``: the others are read when they are used.

    The text is that of the model in memory. What is loaded at once, and in which order, says a policy; one scheduler
    holds their slots and reads ahead in a thread. States and activations come on top of the memory, and so does what
    the system keeps of files, which it gives back when memory is asked for.

    >>> model = zoo.offload("FOLDER", memory="2GB")
    >>> longer = zoo.generate(model, tokens, 50)
    >>> model.offloaded.traffic  # what was read

    Args:
        model: a folder of ``zoo.save_model``, whose files are read where they are; one of another library, or a model,
            whose offloaded weights are first written to a file without a name. A model is changed in place, and can
            neither be trained nor saved, copied or pickled from then on. Of one that several processes share
            (``zoo.parallelize``, plan "tensor") each offloads its own part, by "tpi_llm".
        memory: bytes, such as 2_000_000_000 or "2GB"; of each process.
        policy: one of ``zoo.offload``: "tpi_llm", "se_moe", "edge_moe", "d2moe" or "llm_in_a_flash", or an object of
            their classes.
        folder: where that file is to be; the system's for temporary files when None.

    Returns:
        The model, in eval mode, with ``model.offloaded``: what is held, and its ``traffic``.

    Raises:
        ValueError: for memory that does not hold what stays and one part of the rest, a model without such parts, or
            an unknown policy.
    """
    limit, how = _bytes(memory), _policy(policy)
    pieces: dict[str, Piece] = {}
    if isinstance(model, str | os.PathLike):
        place = Path(model)
        if not is_saved(place):
            raise ValueError(f"{model} is no folder of a saved model: give one, or a model of zoo.create_model")
        if read_config(place).get("model_type") == "zoo":  # other libraries' tensors may be laid out otherwise
            pieces = listed(whole(place))
        model = create_model(f"local-dir:{model}")
    if not isinstance(model, LanguageModel) or getattr(model, "offloaded", None) is not None or model.exits is not None:
        raise ValueError(
            "offload takes a language model that is plain, without exits, and not offloaded yet, got "
            f"{type(model).__name__}"
        )
    if (shared := getattr(model, "parallel", None)) and (shared.plan != "tensor" or not isinstance(how, TPILLM)):
        raise ValueError(
            "processes that share a model offload one of plan='tensor' by policy='tpi_llm', got plan="
            f"{shared.plan!r} and {type(how).__name__}"
        )
    parts = how.parts(model)
    least, rest = how.least(parts), stays(model, parts)
    if limit - rest < least:
        raise ValueError(
            f"memory must hold what stays, {rest:,} bytes, and one part of the rest, {least:,} bytes under "
            f"{type(how).__name__}: got {limit:,}"
        )
    lie = _pieces(model, how, parts, pieces, None if folder is None else Path(folder))
    _release(model, parts)
    model.offloaded = how.install(parts, lie, limit - rest)  # type: ignore[assignment]
    model.register_state_dict_pre_hook(_refuse)
    model.__reduce_ex__ = _refuse_copies  # type: ignore[assignment]  # which both copy.deepcopy and pickle ask for
    return model.eval().requires_grad_(False)


def full_names(model: nn.Module, parts: list[Part]) -> list[tuple[str, ...]]:
    """The names of the parameters of each part, within the model."""
    prefixes = {id(module): f"{name}." for name, module in model.named_modules()}
    return [tuple(prefixes[id(part.module)] + name for name in part.names) for part in parts]


def stays(model: nn.Module, parts: list[Part]) -> int:
    """Bytes of parameters and buffers that are in no part."""
    gone = {id(parameter_of(part.module, name)) for part in parts for name in part.names}
    held = {id(t): t for t in (*model.parameters(), *model.buffers()) if id(t) not in gone}
    return sum(held_of(tensor).nbytes for tensor in held.values())


def _pieces(
    model: nn.Module, how: Offload, parts: list[Part], known: dict[str, Piece], folder: Path | None
) -> list[list[Piece]]:
    """Where the parts are; what is not in files as it is used is written to one."""
    names = full_names(model, parts)
    if how.bundles:
        bundles = ((own[0], how.bundled(part, tensors_of(part))) for part, own in zip(parts, names, strict=True))
        written = spilled(bundles, folder)
        return [[written[own[0]]] for own in names]
    every = {name: held_of(parameter_of(model, name)) for own in names for name in own}
    found = {
        name: known[name]
        for name, tensor in every.items()
        if name in known and (known[name].shape, known[name].dtype) == (tensor.shape, tensor.dtype)
    }
    if len(found) < len(every):
        found |= spilled(((name, tensor) for name, tensor in every.items() if name not in found), folder)
    return [
        [found[name] if part.index is None else found[name][part.index] for name in own]
        for part, own in zip(parts, names, strict=True)
    ]


@torch.no_grad()
def _release(model: nn.Module, parts: list[Part]) -> None:
    """The parameters of the parts take no memory; those that stay take their own, not that of a mapped file."""
    gone = {id(parameter_of(part.module, name)) for part in parts for name in part.names}
    for parameter in model.parameters():
        held = held_of(parameter).detach()
        hold(parameter, absent(held) if id(parameter) in gone else held.clone())


def _bytes(memory: int | str) -> int:
    if isinstance(memory, str):
        try:
            budget = parsed(memory)
        except ValueError:
            budget = None
        if not isinstance(budget, Bytes):
            raise ValueError(f"memory is a number with a unit ({', '.join(UNITS)}), such as 64MiB, got {memory!r}")
        return budget.count
    return memory


def _policy(policy: Offload | str) -> Offload:
    if isinstance(policy, Offload):
        return policy
    if policy not in Offload.named:
        raise ValueError(
            f"there is no way to offload {policy!r}{nearest(str(policy), Offload.named)}; there are "
            f"{', '.join(Offload.named)}"
        )
    return Offload.named[policy]()


def _refuse_copies(*_: Any) -> None:
    raise TypeError("an offloaded model is not copied or pickled, its weights are in files: copy it before zoo.offload")


def _refuse(*_: Any) -> None:
    raise ValueError("the weights of an offloaded model are in its files: save the model before zoo.offload")
