"""TIM: closed lists of subtasks leave, and the memory is at any time that of the visible text alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import zoo
from zoo.decoding import TIM
from zoo.generate.logits import Shaper

PROMPT = "2*(3+4)="
SAID = r'{"subtasks":[{"a":"]\"["},{"subtasks":[7],"c":[7]}],"x":{"subtasks":[1]},"subtasks":[2]}'
SEEN = {  # by the token before which something has left
    0: [
        (r',"c":[7]}],"x"', r'{"subtasks":[{"a":"]\"["},{"subtasks":[]'),
        (r',"x":{"subtasks":[1]', r'{"subtasks":[]'),
        (r'},"subtasks":[2]', r'{"subtasks":[],"x":{"subtasks":[]'),
        (r"}", r'{"subtasks":[],"x":{"subtasks":[]},"subtasks":[]'),
    ],
    1: [
        (r'},"subtasks":[2]', r'{"subtasks":[],"x":{"subtasks":[1]'),
        (r"}", r'{"subtasks":[],"x":{"subtasks":[]},"subtasks":[2]'),
    ],
    3: [],
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return zoo.load_tokenizer("transformer_nano")


def visible(text: str, keep: int) -> list[str]:
    """What is visible before each character of the text."""
    found = [text[:t] for t in range(len(text))]
    for rest, seen in SEEN[keep]:
        start = text.rindex(rest)
        found[start:] = [seen + text[start:t] for t in range(start, len(text))]
    return [PROMPT + one for one in found]


@pytest.mark.parametrize("keep", SEEN)
@pytest.mark.parametrize("name", ["transformer_nano", "falcon_h1_nano"])
def test_every_token_is_said_after_the_visible_text(monkeypatch, tokenizer, name, keep):
    """Nested lists leave with the outer one, which need not be the first; strings close nothing."""
    torch.manual_seed(0)
    model: Any = zoo.create_model(name, depth=1, dtype=torch.float64).eval()
    said = list(SAID.encode())
    script = iter(torch.tensor(said)[:, None].expand(-1, 2))
    monkeypatch.setattr(Shaper, "drawn", lambda self, logits: next(script))
    memory, prompts = TIM(keep=keep), [list(PROMPT.encode())] * 2
    found = zoo.generate(model, prompts, len(said), tokenizer=tokenizer, memory=memory, log_probs=True)
    contexts = visible(SAID, keep)
    for t in range(0, len(said), 1 if name == "transformer_nano" else 9):
        with torch.no_grad():
            expected = model(torch.tensor([list(contexts[t].encode())]), logits_to_keep=1)[0, -1].log_softmax(-1)
        assert abs(float(found.log_probs[0][t] - expected[said[t]])) < 1e-6, contexts[t]
    assert torch.equal(found.tokens[0], torch.tensor(prompts[0] + said))
    assert torch.equal(found.log_probs[0], found.log_probs[1])
    assert memory.counts.most == max(map(len, contexts))
    assert (memory.counts.pruned > 0) == (keep < 3)


def test_nothing_is_pruned_without_a_list(tokenizer):
    model, prompt = zoo.create_model("transformer_nano").eval(), torch.tensor([list(PROMPT.encode())])
    memory = TIM(key="none")
    found = zoo.generate(model, prompt, 8, temperature=0, tokenizer=tokenizer, memory=memory, num_samples=2)
    assert torch.equal(found[1:], zoo.generate(model, prompt, 8, temperature=0)) and memory.counts.pruned == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give the model's tokenizer="),
        ({"cache": "h2o"}, "does not go with cache='h2o'"),
        ({"draft": "early_exit"}, "does not go with draft="),
        ({"memory": 3}, "must be a zoo.decoding.TIM, got int"),
    ],
)
def test_wrong_input_says_so(tokenizer, options, message):
    options = {"memory": TIM(), "tokenizer": tokenizer if options else None, **options}
    with pytest.raises(ValueError, match=message):
        zoo.generate(zoo.create_model("transformer_nano"), [[1, 2]], 2, **options)
    with pytest.raises(ValueError, match="keep must be at least 0, got -1"):
        TIM(keep=-1)
