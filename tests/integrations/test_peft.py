"""LoRA by peft on every language model, plain and wrapped: in effect everywhere, merged, saved, reloaded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

import zoo
from cases.names import by_kind
from zoo.integrations.transformers import wrap

LANGUAGE = zoo.list_models("*_nano", task="language")
HEAD_ALONE = ("memoryformer_nano",)  # has tables; its one linear layer is the head, which peft leaves to a plain model


def built(name: str, wrapped: bool) -> Any:
    """A model that sends gradients everywhere. Of a plain one peft takes the head for a layer as any other: it must not
    be the embedding, which merging would change."""
    torch.manual_seed(0)
    model: Any = zoo.create_model(name, dtype=torch.float64, **({} if wrapped else {"tie_embeddings": False}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def text(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape)


def adapters(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if "lora_" in name}


@pytest.mark.parametrize(
    ("name", "wrapped"),
    [
        pytest.param(
            *name.values, wrapped, marks=name.marks, id=f"{name.values[0]}-{'wrapped' if wrapped else 'plain'}"
        )
        for wrapped in (False, True)
        for name in by_kind(LANGUAGE)
        if not wrapped or name.values[0] not in HEAD_ALONE
    ],
)
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_all_linear_lora(name, wrapped, tmp_path):
    model = built(name, wrapped)
    linears = {key for key, module in model.named_modules() if isinstance(module, nn.Linear)}
    config = LoraConfig(
        r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM" if wrapped else None
    )
    adapted: Any = get_peft_model(wrap(model) if wrapped else model, config)
    found = {
        key.split(".lora_")[0].removeprefix("base_model.model.").removeprefix("model.") for key in adapters(adapted)
    }
    assert found == (linears - {"head"} if wrapped else linears)
    for _ in range(3):  # some routes are taken by some tokens alone
        tokens = text(4, 24)
        if wrapped:
            adapted.train()(input_ids=tokens, labels=tokens).loss.backward()
        else:
            (adapted.train()(tokens, labels=tokens) + sum(zoo.auxiliary_losses(adapted).values())).backward()
    silent = [key for key, parameter in adapters(adapted).items() if parameter.grad is None or not parameter.grad.any()]
    assert not silent
    assert all(parameter.grad is None for key, parameter in adapted.named_parameters() if "lora_" not in key)
    tokens = text(2, 12)
    with torch.no_grad():
        expected = logits(adapted.eval(), tokens)
        adapted.save_pretrained(tmp_path)
        again: Any = PeftModel.from_pretrained(
            wrap(built(name, wrapped)) if wrapped else built(name, wrapped), str(tmp_path)
        ).eval()
        torch.testing.assert_close(logits(again, tokens), expected, rtol=0, atol=0)
        merged = again.merge_and_unload()
        torch.testing.assert_close(logits(merged, tokens), expected)
        plain = merged.model if wrapped else merged
        assert plain.state_dict().keys() == built(name, wrapped).state_dict().keys()
        with adapted.disable_adapter():
            torch.testing.assert_close(logits(adapted, tokens), built(name, wrapped).eval()(tokens), rtol=0, atol=0)


def logits(model: Any, tokens: Tensor) -> Tensor:
    found = model(tokens)
    return found if isinstance(found, Tensor) else found.logits
