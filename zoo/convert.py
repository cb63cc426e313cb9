"""From one published layout of a model to another."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.changes import described_changes, read_changes, rebuilding
from zoo.checkpoints import read_config, read_state_dict, write_folder
from zoo.checkpoints.convert import LAYOUTS, implied, published_config, published_names, settled, to_zoo
from zoo.checkpoints.convert.gguf import to_gguf
from zoo.checkpoints.gguf_file import write_gguf
from zoo.checkpoints.gguf_vocabulary import read_vocabulary
from zoo.config import FREE, agreed, from_json
from zoo.layers.lowrank import ranks_in
from zoo.loading import plan, tied
from zoo.quantize.files import KEY
from zoo.recognition import describe_model, known_beside, recognise
from zoo.registry import ModelEntry, lookup, nearest
from zoo.saving import describe, described


def convert(
    source: str | Path,
    target: str | Path,
    to: str = "zoo",
    *,
    name: str | None = None,
    ema: bool | None = None,
    max_shard_size: int | str | None = None,
    form: str | None = None,
) -> Path:
    """Read a checkpoint in any layout the zoo knows and write a folder in another.

    Tensors keep their dtype, and are read from the disk as they are written. The tokenizer and the settings of
    generation that lie beside a folder's weights come along.

    Args:
        source: a folder with a ``config.json`` (of the zoo, transformers, mamba-ssm, timm, or the authors of BASED),
            or, with ``name``, a file or folder of weights alone.
        target: the folder to write ``model.safetensors``, ``config.json`` and a card into; for "gguf" the file, or a
            folder for ``model.gguf``.
        to: "zoo", "transformers" (mamba, mamba2, recurrent_gemma, lfm2, qwen3_next, kimi_linear, falcon_h1, jamba,
            bamba, granite_hybrid, nemotron_h, zamba2, xlstm, deepseek, moe, gpt_oss, minimax, transformer; deltanet,
            gated_deltanet, gla, retnet, rwkv7 as flash-linear-attention registers them; smallthinker as its authors'
            code reads it), "timm" (vit, efficientvit, shvit, vovnet) or "gguf", llama.cpp's (mamba, mamba2, falcon_h1,
            moe, and transformer in the forms of Llama, Mistral, Qwen2 and Qwen3).
        name: of the registered model whose weights ``source`` holds; of a folder with a ``config.json`` that is still
            what the configuration comes from.
        ema: True takes the averaged copy of a PyTorch file, False the trained weights; None, as ``create_model`` does,
            the former of a Lightning checkpoint of this library and the latter of others.
        max_shard_size: bytes of a file of weights, such as 5_000_000_000 or "5GB"; None writes one file.

        form: "gguf" alone: of its matrices, "f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1" or "q4_0"; None keeps
            each as it is.

    Raises:
        ImportError: for "gguf", without the package of that name.
        ValueError: for a checkpoint that is damaged or does not fit, a family the layout does not have, or a field of
            the configuration that the layout cannot express; nothing is written.
        FileNotFoundError: for a missing file.
    """
    if to not in LAYOUTS:
        raise ValueError(f"unknown layout {to!r}{nearest(to, LAYOUTS)}; layouts: {', '.join(LAYOUTS)}")
    if form is not None and to != "gguf":
        raise ValueError(f"form is of matrices in a GGUF file: got form {form!r} for the layout {to!r}")
    if max_shard_size is not None and to == "gguf":
        raise ValueError("a GGUF file is one: leave out max_shard_size")
    content = read_config(source) if name is None else {}
    changes = read_changes(content)
    if changes and to != "zoo":
        raise ValueError(
            f"{source} holds a model changed by {changes[-1].kind}, which no other layout has: convert it to 'zoo'"
        )
    if KEY in content:
        raise ValueError(f"{source} holds compressed weights, which go into no other layout: convert the float model")
    published = read_state_dict(source, ema)
    if name is None:
        entry, config = describe_model(content, published, str(source))
    else:
        entry = lookup(name)
        config = known_beside(Path(source), published, entry) or entry.configure()
    config = agreed(config, {}, implied(published), str(source))
    model, _, tensors = plan(to_zoo(published), rebuilding(entry.model_class, content), config, str(source))
    if to != "zoo" and ranks_in(model):
        raise ValueError(f"{source} holds factors (zoo.factorize), which no other layout has: convert it to 'zoo'")
    aliases = tied(model)
    tensors = {key: tensor for key, tensor in tensors.items() if key not in aliases}
    card = describe(entry, sum(parameter.numel() for parameter in model.parameters()), target)
    written: Mapping[str, Any] = described(entry, config, tensors) | described_changes(model)
    if to != "zoo":
        layout = "transformers" if to == "gguf" else to
        written, tensors = _published(entry, config, layout), published_names(layout, entry.family, tensors)
    companions = Path(source) if Path(source).is_dir() else None
    if to == "gguf":
        path = Path(target) if Path(target).suffix == ".gguf" else Path(target) / "model.gguf"
        vocabulary = read_vocabulary(companions, written["vocab_size"])
        return write_gguf(path, entry.name, to_gguf(written, tensors), vocabulary, form)
    return write_folder(target, tensors, written, card, companions=companions, max_shard_size=max_shard_size)


def _published(entry: ModelEntry, config: Any, to: str) -> Mapping[str, Any]:
    """The layout's ``config.json``, if reading it again gives the same model."""
    fields = settled(entry.family, dataclasses.asdict(config))
    published = published_config(to, entry.family, entry.name, fields)
    config = from_json(config, entry.name, fields)
    _, again = recognise(published)
    lost = [
        f"{field.name}={getattr(config, field.name)!r}"
        for field in dataclasses.fields(config)
        if field.name not in FREE and getattr(config, field.name) != getattr(again, field.name)
    ]
    if lost:
        raise ValueError(f"{to}'s layout has no words for {', '.join(lost)} of {entry.name}; convert it to 'zoo'")
    return published
