"""An adapter tuned beside requests: each as if it were alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import zoo
from zoo.train.coserve import CoServing, in_pieces, shared_copy
from zoo.train.memory.count import saved_bytes

PROMPTS = [[5, 6, 7, 8], [9], [10, 11, 12]]
SMALL = {"dim": 32, "depth": 2, "num_heads": 4, "num_kv_heads": 2, "mlp_dim": 48}


def nano(name: str = "transformer_nano", **options: Any) -> Any:
    torch.manual_seed(0)
    return zoo.create_model(name, dtype=torch.float64, **options)


def tokens(seed: int = 0, length: int = 22) -> torch.Tensor:
    return torch.randint(256, (2, length), generator=torch.Generator().manual_seed(seed))


def adapted(model: Any, **options: Any) -> Any:
    torch.manual_seed(1)
    tuned: Any = zoo.adapt(shared_copy(model), "lora", rank=2, **options)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return tuned


def learners(model: Any) -> dict[str, Any]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", ["transformer_nano", "mamba2_nano", "recurrent_gemma_nano"])
@pytest.mark.parametrize("chunk_size", [1, 8, 64])
def test_pieces_have_the_gradients_of_the_whole(name: str, chunk_size: int) -> None:
    """Also of what is no part of the blocks, with labels that are not counted."""
    if chunk_size == 1 and name != "transformer_nano":
        pytest.skip("once is enough")
    small = {"dim": 32, "depth": 2} if name != "transformer_nano" else SMALL
    model = adapted(nano(name, **small), also=("norm.*", "embedding.*")).train()
    read, labels = tokens(), tokens().masked_fill(tokens() % 5 == 0, -100)
    wanted = copy.deepcopy(model)
    loss = wanted(read, labels=labels)
    loss.backward()
    pieces, spent = in_pieces(model, read, labels, chunk_size), 0.0
    while True:
        assert all(parameter.grad is None for parameter in model.parameters())
        try:
            spent += next(pieces)
        except StopIteration as end:
            torch.testing.assert_close(end.value, loss.detach(), rtol=0, atol=1e-12)
            break
    for key, parameter in learners(wanted).items():
        torch.testing.assert_close(model.get_parameter(key).grad, parameter.grad, rtol=0, atol=1e-10, msg=key)
    assert spent == pytest.approx(22 * (1 + 3 + 3 / 2 + (3 if chunk_size < 22 else 0)))


def test_requests_and_adapter_are_those_of_each_alone() -> None:
    """Texts, and what three steps of the optimiser make of the adapter; the base is one, and stays to the bit."""
    served = nano(**SMALL)
    before = {key: tensor.clone() for key, tensor in served.state_dict().items()}
    texts = [zoo.generate(served, [prompt], 12, temperature=0)[0].tolist() for prompt in PROMPTS]
    alone, tuned = adapted(copy.deepcopy(served)).train(), adapted(served)
    shared = {id(parameter) for parameter in served.parameters()}
    assert shared <= {id(parameter) for parameter in tuned.parameters()}
    optimizers = [torch.optim.AdamW(learners(model).values(), lr=0.05) for model in (alone, tuned)]
    losses = []
    for seed in range(3):
        loss = alone(tokens(seed), labels=tokens(seed))
        loss.backward()
        losses.append(loss.item())
        optimizers[0].step()
        optimizers[0].zero_grad()
    both = CoServing(served, tuned, optimizers[1], budget=16, chunk_size=8)
    for seed in range(3):
        both.tune(tokens(seed))
    requests = [both.submit(prompt, 12, temperature=0) for prompt in PROMPTS[:2]]
    spent = [both.iterate() for _ in range(3)]
    assert spent[0] >= 16 and all(len(request.said) == 3 for request in requests) and not both.losses
    requests.append(both.submit(PROMPTS[2], 12, temperature=0))
    both.run()
    assert [request.prompt + request.said for request in requests] == texts
    assert both.losses == pytest.approx(losses, abs=1e-9)
    for key, parameter in learners(alone).items():
        torch.testing.assert_close(tuned.get_parameter(key), parameter, rtol=0, atol=1e-9, msg=key)
    assert all(torch.equal(before[key], tensor) for key, tensor in served.state_dict().items())


def test_frozen_weights_and_pieces_keep_less() -> None:
    """Of a step of all weights, of an adapter, and of its pieces, with the inputs of the blocks that these keep."""
    model, read = nano(**SMALL), tokens(length=128)
    every = saved_bytes(model.train(), lambda: model(read, labels=read)).most
    tuned = adapted(nano(**SMALL)).train()
    frozen = saved_bytes(tuned, lambda: tuned(read, labels=read)).most
    kept, inputs = [], SMALL["depth"] * read.numel() * SMALL["dim"] * 8
    for chunk_size in (64, 16):
        pieces = in_pieces(tuned, read, read, chunk_size)
        piece = saved_bytes(tuned, lambda pieces=pieces: torch.tensor(0.0, requires_grad=True) + sum(pieces)).most
        kept.append(inputs + piece)
    assert every > frozen > kept[0] > kept[1] > inputs


def test_wrong_input_says_so() -> None:
    model = nano(**SMALL)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"must not be served meanwhile, but embedding\.weight is in both models"):
        CoServing(model, shared_copy(model), optimizer)
    tuned = adapted(model)
    both = CoServing(model, tuned, torch.optim.SGD(learners(tuned).values(), lr=0.1))
    for read, labels, message in (
        (tokens()[0], None, "tokens must have shape"),
        (tokens() + 999, None, "tokens must be"),
        (tokens(), tokens()[:, 1:], "labels must have the shape of tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            both.tune(read, labels)
    for read, labels in ((tokens(length=1), None), (tokens(), tokens().where(torch.arange(22) == 0, -100))):
        with pytest.raises(ValueError, match="is scored: give sequences of at least 2 tokens"):
            both.tune(read, labels)
    both.run()
    assert not both.losses
    with pytest.raises(ValueError, match="share none: adapt a shared_copy"):
        CoServing(model, adapted(copy.deepcopy(model)), optimizer)
    with pytest.raises(ValueError, match="chunk_size must be at least 1"):
        CoServing(model, adapted(model), optimizer, chunk_size=0)
    for name, message in (("moe_nano", "has side losses or choices"), ("scatterbrain_nano", "a whole sequence")):
        with pytest.raises(ValueError, match=f"{message}.*; tune it by itself") as refused:
            CoServing(model, nano(name), optimizer)
        assert "checkpointing" not in str(refused.value), "which is no option here"
