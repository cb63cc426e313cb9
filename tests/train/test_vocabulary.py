"""A vocabulary of bytes that grows: its merges, the rows of a model, and stages in which other parts learn."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import seed_everything
from lightning.pytorch import Callback
from torch import Tensor

import zoo
from zoo.train.callbacks import ExportModel, LastCheckpoint, RNGState, Stages, newest_checkpoint
from zoo.train.data import GrownSourceDataModule, SourceCodeDataModule
from zoo.train.tasks import VocabularyAdaptation
from zoo.train.vocabulary import Merges, grow_vocabulary

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint"),
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
]
TEXTS = ["aaabdaaabac, aaabdaaabac", "banana bandana", "naïve café", "aaaa aaaaa aaa"]


def merged(tokens: list[int], pair: tuple[int, int], new: int) -> list[int]:
    made: list[int] = []
    for token in tokens:
        if made and (made[-1], token) == pair:
            made[-1] = new
        else:
            made.append(token)
    return made


def test_merges_are_of_the_pair_that_is_most_frequent():
    found = Merges.learnt(TEXTS, 12)
    documents, pieces = [list(text.encode()) for text in TEXTS], {bytes([byte]) for byte in range(256)}
    made = [bytes([byte]) for byte in range(256)]
    for index, pair in enumerate(found.pairs):
        counts: dict[tuple[int, int], int] = {}
        for document in documents:
            for two in pairwise(document):
                counts[two] = counts.get(two, 0) + (made[two[0]] + made[two[1]] not in pieces)
        assert counts[pair] == max(counts.values()) >= 2
        made.append(made[pair[0]] + made[pair[1]])
        pieces.add(made[-1])
        documents = [merged(document, pair, 256 + index) for document in documents]
    assert [found.encode(text) for text in TEXTS] == documents and found.vocab_size == 256 + len(found.pairs)
    assert found.pieces == made[256:] and len(set(found.pieces)) == len(found.pairs)
    assert len(Merges.learnt(["abab"], 9).pairs) == 1, "no pair occurs twice any more"


def test_text_is_found_again_and_other_tools_read_it_alike(tmp_path: Path):
    merges = Merges.learnt(TEXTS, 20)
    merges.save(tmp_path)
    tokenizer = zoo.load_tokenizer(tmp_path)
    for text in [*TEXTS, "other: Ω≈ç√\n\ttabs", ""]:
        tokens = merges.encode(text)
        assert merges.decode(tokens) == text and len(tokens) <= len(text.encode())
        assert list(tokenizer.encode(text)) == tokens and tokenizer.decode(tokens) == text


@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_new_tokens_are_means_and_old_ones_stay(tied):
    model: Any = zoo.create_model("transformer_nano", depth=1, tie_embeddings=tied, dtype=torch.float64).eval()
    tokens, tables = torch.randint(0, 256, (2, 9)), (model.embedding, model.head)
    before, old = model(tokens), [table.weight.detach().clone() for table in tables]
    grow_vocabulary(model, [b"the", b"ab"])
    assert torch.equal(model(tokens)[..., :256], before) and model.config.vocab_size == 258
    assert (model.embedding.weight is model.head.weight) == tied
    for table, rows in zip(tables, old, strict=True):
        assert torch.equal(table.weight[:256], rows)
        torch.testing.assert_close(table.weight[256], rows[[116, 104, 101]].mean(0))
        torch.testing.assert_close(table.weight[257], rows[[97, 98]].mean(0))
    with pytest.raises(ValueError, match="of 256 bytes is grown, the model has 258 tokens"):
        grow_vocabulary(model, [b"the"])
    with pytest.raises(ValueError, match="rows must be 'pieces'"):
        grow_vocabulary(model, [b"the"], "zeros")  # pyright: ignore[reportArgumentType]


def test_the_data_cover_the_same_text_in_fewer_tokens():
    plain, grown = SourceCodeDataModule(most=10), GrownSourceDataModule(20, most=10)
    (document,) = grown.documents("test")[:1]
    assert plain.documents("test") == grown.documents("test") and grown.vocab_size == 276
    tokens = grown.encode(document)
    assert len(tokens) < 0.95 * len(document.encode()) and grown.vocabulary.decode(tokens.tolist()) == document
    assert grown.vocabulary == Merges.learnt(plain.documents("train"), 20)


class Watch(Callback):
    """Which parameters moved in each step."""

    def __init__(self) -> None:
        self.moved: list[set[str]] = []
        self.last: dict[str, Tensor] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.last = {name: p.detach().clone() for name, p in pl_module.trained.named_parameters()}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        now = dict(pl_module.trained.named_parameters())
        moved = [name.split(".") for name, p in now.items() if not torch.equal(p, self.last[name])]
        self.moved.append({parts[0] + (parts[1] if parts[0] == "blocks" else "") for parts in moved})


def test_stages_and_a_resumed_run(trainer, tmp_path: Path):
    small = {"dim": 16, "depth": 2, "num_heads": 2, "num_kv_heads": 1, "mlp_dim": 16}
    patterns = [["embedding.*"], ["blocks.[13579].*"], ["blocks.[02468].*"], ["*"]]

    def run(folder: str, steps: int) -> tuple[dict[str, Tensor], Watch]:
        seed_everything(0, verbose=False)
        task = VocabularyAdaptation("transformer_nano", small, new_tokens=7, schedule_steps=9, weight_decay=0.1)
        watch, where = Watch(), tmp_path / folder
        callbacks = [Stages(patterns, [2, 1, 1, 1]), watch, RNGState(), LastCheckpoint(1), ExportModel()]
        made = trainer(*callbacks, max_steps=steps, limit_val_batches=0, default_root_dir=where)
        data = GrownSourceDataModule(7, most=10, seq_len=16, batch_size=2)
        made.fit(task, data, ckpt_path=newest_checkpoint(where), weights_only=True)
        return {key: tensor.clone() for key, tensor in task.trained.state_dict().items()}, watch

    whole, watch = run("whole", 6)
    every = {"embedding", "blocks0", "blocks1", "norm"}
    assert watch.moved == [{"embedding"}, {"embedding"}, {"blocks1"}, {"blocks0"}, every, every]
    run("parts", 3)
    resumed, _ = run("parts", 6)
    assert all(torch.equal(tensor, resumed[key]) for key, tensor in whole.items())
    saved: Any = zoo.create_model(f"local-dir:{tmp_path / 'whole' / 'model'}")
    assert saved.config.vocab_size == 263 and zoo.load_tokenizer(tmp_path / "whole" / "model").encode("self")


def test_errors(trainer):
    for patterns, steps in (([], []), ([["*"]], [0]), ([["*"]], [1, 2]), ([[]], [1])):
        with pytest.raises(ValueError, match="each stage needs patterns and steps"):
            Stages(patterns, steps)
    task = VocabularyAdaptation("transformer_nano", {"depth": 1}, new_tokens=7)
    with pytest.raises(ValueError, match="a vocabulary of 7 tokens beyond bytes, SourceCodeDataModule has 0"):
        trainer(max_steps=1).fit(task, SourceCodeDataModule(most=10))
    task = VocabularyAdaptation("transformer_nano", {"depth": 1}, new_tokens=7)
    with pytest.raises(ValueError, match=r"'block\.\*' fits no parameter"):
        trainer(Stages([["block.*"]], [1]), max_steps=1).fit(task, GrownSourceDataModule(7, most=10, batch_size=2))
