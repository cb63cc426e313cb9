"""Language models that go on from a state: padding, low precision, generation; vocabulary and loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo

LANGUAGE = zoo.list_models("*_nano", task="language")
PADDED = torch.tensor([[-1, -1, -1, 0, 0, 0, 0], [0, -1, 0, 0, -1, 0, -1], [-1] * 7])


def built(name: str, **options: Any) -> Any:
    """A model that routes some of its tokens, whatever its first weights would do."""
    torch.manual_seed(0)
    model: Any = zoo.create_model(name, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def text(model: Any, *shape: int) -> Tensor:
    return torch.randint(0, model.config.vocab_size, shape)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", LANGUAGE)
@torch.no_grad()
def test_padding_in_a_continued_forward_is_skipped(name):
    """As if each row had been given its own tokens alone: the logits, and those of further tokens."""
    model = built(name, dtype=torch.float64)
    before, tokens, after = text(model, 3, 12), text(model, 3, 7), text(model, 3, 3)
    state = model.init_state(3, max_length=40)
    model(before, state)
    found = model(tokens, state, seq_idx=PADDED)
    steps = model(after[:, :1], state, seq_idx=torch.tensor([[0], [-1], [0]]))
    further = model(after[:, 1:], state)
    for row, ids in enumerate(PADDED):
        alone = model.init_state(1)
        model(before[row : row + 1], alone)
        if (ids >= 0).any():
            close(found[row, ids >= 0], model(tokens[row : row + 1, ids >= 0], alone)[0])
        if row != 1:
            close(steps[row], model(after[row : row + 1, :1], alone)[0])
        close(further[row], model(after[row : row + 1, 1:], alone)[0])


@pytest.mark.parametrize("name", ["mamba2_nano", "transformer_nano", "s4_nano"])
def test_padding_within_a_row_is_skipped_without_a_state(name):
    model, ids = built(name, dtype=torch.float64), PADDED[:2]
    tokens = text(model, 2, 7)
    found = model(tokens, seq_idx=ids)
    close(model(tokens, seq_idx=ids, logits_to_keep=2), found[:, -2:])
    losses = []
    for row in range(2):
        alone = tokens[row : row + 1, ids[row] >= 0]
        close(found[row, ids[row] >= 0], model(alone)[0])
        losses.append(model(alone, labels=alone))
    close(model(tokens, labels=tokens, seq_idx=ids), torch.stack(losses).mean())  # four tokens a row


@pytest.mark.parametrize("name", LANGUAGE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_decodes_under_autocast(name, dtype):
    model = built(name)
    tokens = text(model, 2, 12)
    exact, state = model(tokens), model.init_state(2, 12)
    with torch.autocast("cpu", dtype=dtype):
        parts = [model(tokens[:, :8], state)] + [model(tokens[:, t : t + 1], state) for t in range(8, 12)]
    found = torch.cat(parts, dim=1).float()
    assert torch.isfinite(found).all() and (found - exact).norm() < 0.2 * exact.norm()


@pytest.mark.parametrize("name", LANGUAGE)
def test_truncated_backpropagation_is_one_call(name):
    """By parts whose state is detached: the second part sends no gradient into the first."""
    model = built(name, dtype=torch.float64)
    tokens, seen = text(model, 2, 10), []
    model.embedding.register_forward_hook(lambda _, inputs, output: seen.append(output.requires_grad_()))
    state = model.init_state(2, max_length=10)
    model(tokens[:, :5], state)
    state = state.detach()
    model(tokens[:, 5:], state, labels=tokens[:, 5:]).backward(inputs=seen)
    assert seen[0].grad is None and seen[1].grad.any()


@pytest.mark.parametrize("name", ["routing_nano", "mod_nano"])
def test_generate_returns_ordinary_tensors_and_leaves_the_model_alone(name):
    model = zoo.create_model(name).train()
    model.blocks[0].eval()  # frozen by the user
    generated = zoo.generate(model, text(model, 2, 4), 4)  # type: ignore[arg-type]
    assert not generated.is_inference() and model.training and not model.blocks[0].training
    model(generated, labels=generated).backward()
    assert all(parameter.grad is not None for parameter in model.embedding.parameters())


@pytest.mark.parametrize("name", ["mamba2_nano", "routing_nano"])
def test_loss_over_a_given_count_adds_up_over_unequal_parts(name):
    """The parts' gradients together are those of the whole batch, whatever is scored in each."""
    model = built(name, dtype=torch.float64)
    tokens = text(model, 4, 9)
    labels = tokens.masked_fill(torch.rand(4, 9) < 0.4, -100)
    labels[0] = -100  # a part in which nothing is scored
    count = int((labels[:, 1:] != -100).sum())
    parts = [model(tokens[i : i + 1], labels=labels[i : i + 1], num_scored=count) for i in range(4)]
    close(torch.stack(parts).sum(), model(tokens, labels=labels))
    close(model(tokens, labels=labels, num_scored=torch.tensor(2 * count)), model(tokens, labels=labels) / 2)
    with pytest.raises(ValueError, match=r"num_scored.*must be at least 1, got 0"):
        model(tokens, labels=labels, num_scored=0)


@pytest.mark.parametrize("name", ["mamba2_nano", "routing_nano", "deepseek_nano"])
@pytest.mark.parametrize("tied", [True, False])
def test_vocabulary_grows_and_shrinks(name, tied, tmp_path):
    model = built(name, tie_embeddings=tied)
    tokens, names = text(model, 1, 6).clamp(max=199), [key for key, _ in model.named_parameters()]
    expected, mean = model(tokens), model.head.weight.mean(0)
    model.resize_token_embeddings(300)
    assert model.config.vocab_size == 300 and (model.head.weight is model.embedding.weight) == tied
    found = model(tokens)
    torch.testing.assert_close(found[..., :256], expected)
    torch.testing.assert_close(model.head.weight[256:], mean.expand(44, -1))
    assert torch.isfinite(model(torch.tensor([[299, 3]]), labels=torch.tensor([[299, 3]])))
    zoo.save_model(model, tmp_path)
    torch.testing.assert_close(zoo.create_model(f"local-dir:{tmp_path}").eval()(tokens), found)
    model.resize_token_embeddings(200)
    torch.testing.assert_close(model(tokens), expected[..., :200])
    assert [key for key, _ in model.named_parameters()] == names
    with pytest.raises(ValueError, match="must be in \\[0, 200\\), got 200"):
        model(torch.tensor([[200]]))


def test_vocabulary_that_cannot_be_resized_says_so():
    model: Any = zoo.create_model("mamba_nano")
    with pytest.raises(ValueError, match="vocab_size must be a positive integer, got 0"):
        model.resize_token_embeddings(0)
    model.head = nn.Identity()
    with pytest.raises(ValueError, match="head has no weights to resize, it is Identity"):
        model.resize_token_embeddings(300)


@torch.no_grad()
def test_decoding_compiles_as_one_graph_at_any_length():
    """Also where the lengths of the calls have become symbols."""
    model = built("transformer_nano", depth=1)
    tokens = text(model, 2, 9)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    expected, state = compiled(tokens), model.init_state(2, 9)
    parts = [compiled(part, state) for part in tokens.split([5, 1, 1, 2], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected)
