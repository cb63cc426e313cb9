"""SpecPC: which tokens of a prompt stay, by hand, and that the model reads nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from cases.attention import weights
from zoo.decoding import SpecPC
from zoo.generate.prompts import Batch

LENGTH, BUDGET, WINDOW = 30, 14, 5


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any]:
    torch.manual_seed(0)
    draft: Any = zoo.create_model("transformer_nano", depth=3, dtype=torch.float64)
    for block in draft.blocks:
        block.mixer.q_proj.weight.data.mul_(20)  # so that tokens differ in what they are given
    return zoo.create_model("mamba2_nano").eval(), draft


def prompt() -> Tensor:
    return torch.randint(1, 256, (1, LENGTH), generator=torch.Generator().manual_seed(3))


def scores_by_hand(draft: Any, tokens: Tensor, layer: int) -> Tensor:
    """Of the prompt's tokens, from its window and from what follows it."""
    given: list[Tensor] = []
    hooks = [
        block.mixer.register_forward_pre_hook(lambda mixer, inputs: given.append(weights(mixer, inputs[0])))
        for block in draft.blocks
    ]
    draft(tokens)
    for hook in hooks:
        hook.remove()
    factor = torch.ones(tokens.shape[1], dtype=torch.float64)
    factor[: LENGTH - WINDOW] = 0
    factor[LENGTH - WINDOW : LENGTH] = torch.tensor([0, 0.25, 0.5, 0.75, 1])
    return (torch.stack(given[layer:]) * factor[:, None])[..., :LENGTH].amax((0, 1, 2))


def chosen_by_hand(score: list[float], kernel: int) -> list[int]:
    before, after = (kernel - 1) // 2, kernel - 1 - (kernel - 1) // 2
    near = [max(score[max(0, t - before) : t + after + 1]) for t in range(LENGTH)]
    stays = list(range(LENGTH - WINDOW, LENGTH))
    for place in sorted(range(LENGTH), key=lambda t: -near[t]):
        for step in sorted(range(-before, after + 1), key=abs):
            if 0 <= place + step < LENGTH and place + step not in stays and len(stays) < BUDGET:
                stays.append(place + step)
    return sorted(stays)


@torch.no_grad()
@pytest.mark.parametrize(("kernel", "ahead", "layer"), [(1, 0, 0), (3, 4, 1), (4, 2, 2)])
def test_what_the_draft_looks_at_stays(models, kernel, ahead, layer):
    model, draft = models
    compress = SpecPC(draft, BUDGET, WINDOW, kernel, layer, ahead)
    longer = zoo.generate(draft, prompt(), ahead, temperature=0) if ahead else prompt()
    score = scores_by_hand(draft.eval(), longer, layer)
    draft.train()
    torch.testing.assert_close(compress.scores(Batch(prompt()))[0], score, atol=1e-9, rtol=1e-6)
    kept = chosen_by_hand(score.tolist(), kernel)
    assert compress.chosen(score).tolist() == kept and kept != list(range(LENGTH - BUDGET, LENGTH))
    found = zoo.generate(model, prompt(), 6, temperature=0, compress=compress)
    alone = zoo.generate(model, prompt()[:, kept], 6, temperature=0)
    assert torch.equal(found, torch.cat([prompt(), alone[:, BUDGET:]], 1)) and draft.training


def test_rows_are_shortened_as_they_are_alone(models):
    """Also in streams; what is within the budget stays whole."""
    model, draft = models
    compress, prompts = SpecPC(draft, BUDGET, WINDOW, 3, ahead=2), [list(range(7, 31)), [5, 6, 7], list(range(90, 130))]
    together = zoo.generate(model, prompts, 4, temperature=0, compress=compress)
    for one, found in zip(prompts, together, strict=True):
        assert torch.equal(found, zoo.generate(model, [one], 4, temperature=0, compress=compress)[0])
    assert torch.equal(together[1], zoo.generate(model, [prompts[1]], 4, temperature=0)[0])
    state = model.init_state(3)
    said = [step.tokens for step in zoo.stream(model, prompts, 4, temperature=0, compress=compress, state=state)]
    assert torch.equal(torch.stack(said, 1), torch.stack([row[-4:] for row in together]))
    assert state[0].seen == BUDGET + 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda draft: {"compress": SpecPC(draft, 4, 5)}, "window always stays: got window 5, budget 4"),
        (lambda draft: {"compress": SpecPC(draft, 8, 4, layer=3)}, "below the draft's 3 layers with attention, got 3"),
        (lambda draft: {"compress": SpecPC(draft.blocks, 8, 4)}, "draft must be a language model, got ModuleList"),
        (lambda draft: {"compress": SpecPC(other("mamba_nano"), 8, 4)}, "there is none: the states are MambaState"),
        (lambda draft: {"compress": SpecPC(other("mor_nano"), 8, 4)}, "every token to every layer, and MoR"),
        (lambda draft: {"compress": SpecPC(other("transformer_nano", vocab_size=9), 8, 4)}, "256 tokens, got one of 9"),
        (lambda draft: {"compress": draft}, "must be a zoo.decoding.SpecPC, got TransformerLanguageModel"),
    ],
)
def test_wrong_input_says_so(models, make, message):
    model, draft = models
    with pytest.raises(ValueError, match=message):
        zoo.generate(model, prompt(), 2, **make(draft))


def other(name: str, **options: Any) -> Any:
    return zoo.create_model(name, **options)
