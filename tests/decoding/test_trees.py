"""Trees of drafts: read as each branch alone, kept as text, drawn by the draft's law, and what cannot read them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import zoo
from cases.names import by_kind
from zoo.decoding import ModelDraft
from zoo.decoding.tree import TreeReader, noised

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14]]
CHAINS = ("mod_nano", "mor_nano", "routing_nano", "seqboat_nano", "zamba2_nano")  # read no trees, and say so
BRANCHING = [name for name in zoo.list_models("*_nano", task="language") if name not in CHAINS]
PARENT = torch.tensor([[-1, 0, 0, 1, 2, 2, 4], [-1, -1, 0, 1, 3, 3, 5]])


def branch(row: int, node: int) -> list[int]:
    above = int(PARENT[row, node])
    return [*(branch(row, above) if above >= 0 else []), node]


@pytest.mark.parametrize(
    "name",
    ["transformer_nano", "deepseek_nano", "gpt_oss_nano", "falcon_h1_nano", "mamba_nano", "lizard_nano",
     "titans_mag_nano", "titans_mac_nano"],
)  # fmt: skip
@torch.no_grad()
def test_every_node_is_read_as_the_end_of_its_branch(name):
    """Rows with padding, windows that nodes fall out of, learned keys, recurrent states alone and beside attention, a
    tree in two parts; then a branch is kept, and another tree follows."""
    torch.manual_seed(0)
    options = {"window": 9} if name in ("gpt_oss_nano", "titans_mag_nano") else {}
    model: Any = zoo.create_model(name, dtype=torch.float64, **options).eval()
    text, nodes = torch.randint(256, (2, 12)), torch.randint(256, (2, 7))
    ids = torch.zeros(2, 12, dtype=torch.long)
    ids[1, :4] = -1
    state = model.init_state(2, 40)
    model(text, state, seq_idx=ids)
    own = [text[0], text[1, 4:]]
    reader = TreeReader(model, state)
    for path in (torch.tensor([[0, 2, 4], [1, 3, 4]]), torch.tensor([[0, 1, 3], [1, 3, 5]])):
        found = torch.cat([reader(nodes[:, :3], PARENT[:, :3]), reader(nodes[:, 3:], PARENT[:, 3:])], 1)
        for row in range(2):
            for node in range(7):
                alone = model(torch.cat([own[row], nodes[row, branch(row, node)]])[None])[0, -1]
                torch.testing.assert_close(found[row, node], alone, rtol=1e-9, atol=1e-9)
        reader.keep(path)
        own = [torch.cat([one, nodes[row, path[row]]]) for row, one in enumerate(own)]
    after = model(nodes[:, :1], state)
    for row in range(2):
        alone = model(torch.cat([own[row], nodes[row, :1]])[None])[0, -1]
        torch.testing.assert_close(after[row, 0], alone, rtol=1e-9, atol=1e-9)


@pytest.fixture(scope="module")
def pair() -> Any:
    torch.manual_seed(0)
    model: Any = zoo.create_model("transformer_nano", pretrained=True)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
    return model, other


@pytest.mark.parametrize("name", by_kind(BRANCHING, ("transformer_nano", "falcon_h1_nano")))
def test_the_text_is_that_of_the_model_alone(name, pair):
    """Rows of different length, which accept differently."""
    torch.manual_seed(0)
    model: Any = zoo.create_model(name)
    draft = ModelDraft(pair[1], widths=(3, 5, 4))
    plain = zoo.generate(model, PROMPTS, 9, temperature=0)
    found = zoo.generate(model, PROMPTS, 9, temperature=0, draft=draft)
    assert all(torch.equal(*rows) for rows in zip(found, plain, strict=True))


@torch.no_grad()
def test_a_tree_leaves_the_state_as_it_was():
    """Before a branch is kept; and of the branch it is the one that a chain leaves."""
    model: Any = zoo.create_model("falcon_h1_nano", depth=1, dtype=torch.float64).eval()
    text, nodes, path = torch.randint(256, (2, 6)), torch.randint(256, (2, 7)), torch.tensor([[0, 2, 4], [1, 3, 4]])
    state, chain = model.init_state(2), model.init_state(2)
    for one in (state, chain):
        model(text, one)
    before = [(name, tensor.clone()) for name, tensor in state[0].tensors()]
    reader = TreeReader(model, state)
    reader(nodes, PARENT)
    assert all(torch.equal(tensor, then) for (_, tensor), (_, then) in zip(state[0].tensors(), before, strict=True))
    reader.keep(path)
    model(nodes.gather(1, path), chain)
    for part, other in zip(state[0].parts, chain[0].parts, strict=True):
        assert part.seen == other.seen == 9
        for (name, tensor), (_, expected) in zip(part.tensors(), other.tensors(), strict=True):
            torch.testing.assert_close(
                tensor[:, :, :9] if name in ("key", "value") else tensor,
                expected[:, :, :9] if name in ("key", "value") else expected,
            )


def test_ends_penalties_samples_and_chunks_are_as_without_a_draft(pair):
    model, other = pair
    plain = zoo.generate(model, PROMPTS, 12, temperature=0)
    options: Any
    for options in (
        {"eos_token": int(plain[0][6])}, {"repetition_penalty": 1.5}, {"presence_penalty": 2.0, "min_new_tokens": 5},
        {"num_samples": 2}, {"prefill_chunk": 2},
    ):  # fmt: skip
        expected = zoo.generate(model, PROMPTS, 12, temperature=0, **options)
        draft = ModelDraft(other, widths=(2, 4, 3))
        found = zoo.generate(model, PROMPTS, 12, temperature=0, draft=draft, **options)
        assert all(torch.equal(*rows) for rows in zip(found, expected, strict=True)), options
    for count in (1, 2, 3):
        found = zoo.generate(model, PROMPTS, count, temperature=0, draft=ModelDraft(other, widths=(2, 2)))
        assert all(torch.equal(row, whole[: len(row)]) for row, whole in zip(found, plain, strict=True))


def test_a_tree_finds_more_than_its_first_branch(pair):
    """A chain is that branch; the drafts of the model itself are all right."""
    model, other = pair
    chain, tree = ModelDraft(other, length=3), ModelDraft(other, widths=(4, 8, 8))
    for draft in (chain, tree):
        zoo.generate(model, [list(b"The import statement")], 60, temperature=0, draft=draft)
    assert tree.counts.tokens == chain.counts.tokens and tree.counts.passes < 0.9 * chain.counts.passes
    for temperature in (0, 1):
        own, source = ModelDraft(model, widths=(2, 3, 3)), torch.Generator().manual_seed(0)
        zoo.generate(model, PROMPTS[:1], 9, temperature=temperature, draft=own, generator=source)
        assert own.counts.passes == 2


def test_tokens_that_may_not_be_said_are_no_nodes(pair):
    """Two of all may, so that wider levels have places to spare."""
    draft = ModelDraft(pair[1], widths=(4, 8))
    found = zoo.generate(pair[0], PROMPTS, 9, top_k=2, draft=draft, generator=torch.Generator().manual_seed(0))
    assert [len(row) for row in found] == [12, 10, 15]


def test_the_largest_of_the_noise_are_a_sample_without_replacement():
    """Of a node, pairs of tokens come as often as when one is drawn after the other (12 - 1 degrees of freedom, 99.9
    %); and the best has the node's own noise."""
    count, source = 40_000, torch.Generator().manual_seed(0)
    law = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    above = torch.full((count, 1), -0.3, dtype=torch.float64)
    found = noised((0.6 * law).log().expand(count, 1, 4), above, source)
    torch.testing.assert_close(found.amax(-1), above)
    first, second = found[:, 0].topk(2).indices.unbind(1)
    seen = (4 * first + second).bincount(minlength=16).view(4, 4)
    hoped = count * law[:, None] * law / (1 - law[:, None])
    assert float(((seen - hoped).square() / hoped)[~torch.eye(4, dtype=torch.bool)].sum()) < 31.26


def test_what_cannot_read_a_tree(pair):
    model, other = pair
    for target, draft, options, message in (
        (zoo.create_model("seqboat_nano"), other, {}, "keeps a ActiveWindowState: draft a chain"),
        (model, zoo.create_model("routing_nano"), {}, "keeps a RoutingState: draft a chain"),
        (zoo.create_model("mod_nano"), other, {}, "tokens pass by the attention of MoDLanguageModel: draft a chain"),
        (zoo.create_model("mor_nano"), other, {}, "are not run one after the other: draft a chain"),
        (model, other, {"cache": "h2o"}, "leave out cache="),
    ):
        with pytest.raises(ValueError, match=message):
            zoo.generate(target, PROMPTS, 3, draft=ModelDraft(draft, widths=(2, 2)), **options)
        plain = zoo.generate(target, PROMPTS, 7, temperature=0, **options)
        chain = ModelDraft(draft, widths=(2, 2), or_chain=True)
        found = zoo.generate(target, PROMPTS, 7, temperature=0, draft=chain, **options)
        assert all(torch.equal(*rows) for rows in zip(found, plain, strict=True))
    with pytest.raises(ValueError, match=r"integers above 0, got \(2, 0\)"):
        ModelDraft(other, widths=(2, 0))
