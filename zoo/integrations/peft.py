"""peft's LoRA on linear layers whose matrix is no parameter: compressed ones, and those without their zeros."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import Linear
from torch import nn

from zoo.kernels.step_program import Value, dense
from zoo.layers.linear import HeldLinear
from zoo.layers.step.writer import Undescribed, Writer, describes

STARTS = ("gaussian", "orthogonal")  # of peft's named ones those that do not look at the matrix
KEPT = "it stays beside the layer: save_pretrained writes it; of a model adapted by zoo.adapt see zoo.merge_adapter"


class HeldLoRA(Linear):
    """y = layer(x) + (alpha / rank) B A x over a layer that holds its matrix in another form than numbers (QLoRA).

    Gradients of x go through the layer, those of numbers to A and B alone, which are float32 unless they are cast.

    Args:
        base_layer: a ``HeldLinear``, such as those that ``zoo.quantize`` makes.
        adapter_name: as peft has it.
        config: of plain LoRA, which starts without a look at the matrix.
        rest: as peft has it.

    Raises:
        ValueError: for DoRA and other kinds of LoRA, or a start that is made of the matrix.

    Paper: Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", arXiv 2305.14314.
    """

    def __init__(self, base_layer: HeldLinear, adapter_name: str, config: LoraConfig, **rest: Any):
        start = config.init_lora_weights
        if isinstance(start, str) and start not in STARTS:
            raise ValueError(
                f"over a compressed layer init_lora_weights is a bool or one of {', '.join(STARTS)}, got {start!r}, "
                "which is made of a matrix of numbers: use it before zoo.quantize"
            )
        super().__init__(base_layer, adapter_name, config, **rest)

    @property
    def lora_variants(self) -> dict[tuple[str, ...], None]:
        """Plain LoRA alone."""
        return {(): None}

    def resolve_lora_variant(self, *, config: LoraConfig, **rest: Any) -> None:
        """None, that of plain LoRA."""
        try:
            super().resolve_lora_variant(config=config, **rest)
        except ValueError as error:
            raise ValueError(
                f"over a compressed layer LoRA is plain, got {config}: the others are made of a matrix of numbers"
            ) from error

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Raise a ValueError: codes of a few bits cannot take up the product."""
        raise ValueError(f"LoRA over a compressed layer cannot be merged in its place: {KEPT}")

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        known: Any = module
        return known.in_features, known.out_features

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device, None]:
        known: Any = base_layer
        return known.weight.device, None


def over_records(config: LoraConfig) -> LoraConfig:
    """The config, by which peft puts LoRA on the zoo's compressed linear layers too; name them by ``target_modules``.

    >>> model = zoo.quantize(zoo.create_model("transformer_nano", pretrained=True))
    >>> tuned = peft.get_peft_model(model, over_records(LoraConfig(target_modules=["q_proj", "v_proj"])))

    No file keeps it: give ``config=over_records(LoraConfig.from_pretrained(folder))`` to ``PeftModel.from_pretrained``.
    """
    config._register_custom_module({HeldLinear: HeldLoRA})
    return config


@describes(HeldLoRA)
def _held_lora(p: Writer, module: HeldLoRA, x: Value) -> Value:
    p.places.append((vars(module), tuple(vars(module).values())))  # whether it is disabled, and which is active
    y = p.call(module.base_layer, x)
    for name in () if module.disable_adapters else module.active_adapters:
        p.places.append((module.scaling, tuple(module.scaling.values())))
        for part in (module.lora_A, module.lora_B, module.lora_dropout):
            p.visit(part)
            p.visit(part[name])
        down: Any = module.lora_A[name]
        up: Any = module.lora_B[name]
        if up.bias is not None:
            raise Undescribed("LoRA with a bias")
        product = p.linear(p.linear(x, dense(p, down.weight)), dense(p, up.weight))
        p.accumulate(y, product._replace(factor=module.scaling[name]))
    return y._replace(made=None)
