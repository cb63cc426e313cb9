"""Prompts whose answers can be checked, and pairs of answers of which one is worth more."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoo.layers.options import require_at_least
from zoo.train.data.base import DataModule
from zoo.train.data.loader import Batch, Source
from zoo.train.data.rng import derive_seed, integers
from zoo.train.data.synthetic import SyntheticTask
from zoo.train.data.text import DocumentationDataModule
from zoo.train.data.windows import IGNORED, TrainingWindows

VOWELS = b"aeiouAEIOU"


class RewardedTask(SyntheticTask):
    """Prompts `(B, P)` and what `reward` must know of them; a policy learns by answering (`zoo.train.tasks.ReMax`)."""

    @abstractmethod
    def reward(self, answers: Tensor, targets: Any) -> Tensor:
        """What answers (B, A) to prompts with these targets are worth, (B,) float."""


@dataclass(frozen=True)
class SortLetters(RewardedTask):
    """Say a few letters in order; an answer is worth the share of its places that are right.

    A prompt is `count` of the letters 0 to `letters` - 1, any of them twice, and the mark `letters`; its target is what
    is right: `2 0 2 5 M` -> `0 2 2 5`.

    Raises:
        ValueError: for numbers out of range.
    """

    letters: int = 8
    count: int = 4

    def __post_init__(self) -> None:
        require_at_least(2, letters=self.letters)
        require_at_least(1, count=self.count)

    @property
    def vocab_size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.letters + 1

    @property
    def length(self) -> int:
        return 2 * self.count + 1

    @property
    def demands(self) -> dict[str, Any]:
        return {"vocab_size": self.vocab_size}

    def generate(self, indices: Tensor, seed: int) -> Batch:
        drawn = integers(indices, self.count, self.letters, seed)
        mark = torch.full((len(indices), 1), self.letters)
        return torch.cat([drawn, mark], 1), drawn.sort(1).values

    def reward(self, answers: Tensor, targets: Tensor) -> Tensor:
        return (answers == targets).float().mean(1)


class FewVowels:
    """Bytes: the share of an answer that is no vowel."""

    def reward(self, answers: Tensor, targets: Any = None) -> Tensor:
        """Of answers (B, A)."""
        return (~torch.isin(answers, torch.tensor(list(VOWELS), device=answers.device))).float().mean(1)


class PreferencesDataModule(DataModule):
    """Pairs of answers of a language model to beginnings of documentation, the one with fewer vowels first.

    Batches are `(tokens (B, 2, T), labels (B, 2, T))`, int64, T = prompt_length + answer_length: the answer that is
    preferred and the other, after the same bytes, whose labels are -100. A prompt is a window of Python's documentation
    (the splits of `DocumentationDataModule`), and both answers are drawn from the model at temperature 1. Pairs that
    are worth the same are left out, so that a split has some fewer than it was asked for.

    Args:
        model: name of a language model of bytes with weights, or "local-dir:FOLDER": who answered.
        prompt_length, answer_length: in bytes.
        train_pairs, val_pairs, test_pairs: prompts of each split.
        batch_size, eval_batch_size, num_workers, seed: see `DataModule`; answers do not depend on it.

    Raises:
        ValueError: for sizes out of range, or a model of other tokens.
    """

    task = FewVowels()

    def __init__(
        self,
        model: str = "transformer_nano",
        *,
        prompt_length: int = 32,
        answer_length: int = 24,
        train_pairs: int = 1024,
        val_pairs: int = 128,
        test_pairs: int = 256,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers, seed=seed)
        require_at_least(1, prompt_length=prompt_length, answer_length=answer_length)
        self.pairs = {"train": train_pairs, "val": val_pairs, "test": test_pairs}
        require_at_least(1, **{f"{split}_pairs": pairs for split, pairs in self.pairs.items()})
        self.model, self.prompt_length, self.answer_length = model, prompt_length, answer_length

    vocab_size = 256

    def build(self) -> dict[str, Source]:
        import zoo
        from zoo.train.policy import answered

        named = not self.model.startswith(("local-dir:", "hf-hub:"))
        model: Any = zoo.create_model(self.model, pretrained=named)
        if getattr(model.config, "vocab_size", None) != self.vocab_size:
            raise ValueError(f"preferences are of bytes: {self.model} has another vocab_size, take one of 256")
        text, sources = DocumentationDataModule(), {}
        for number, (split, pairs) in enumerate(self.pairs.items()):
            documents = [text.encode(document) for document in text.documents(split)]
            windows = TrainingWindows(documents, self.prompt_length, text.separator, 0, "random")
            prompts, _ = windows.fetch(torch.arange(pairs), number)
            said = answered(model, prompts, self.answer_length, seed=derive_seed(0, number), copies=2)
            sources[split] = Pairs(said.view(pairs, 2, -1), self.prompt_length, self.task)
        return sources


class Pairs:
    """Answers (N, 2, T) to prompts, the one that is worth more first; without those that are worth the same."""

    def __init__(self, tokens: Tensor, start: int, task: FewVowels) -> None:
        worth = task.reward(tokens.flatten(0, 1)[:, start:]).view(-1, 2)
        order = worth.argsort(1, descending=True)
        apart = worth[:, 0] != worth[:, 1]
        self.tokens = tokens.take_along_dim(order[..., None], 1)[apart]
        self.start = start

    def __len__(self) -> int:
        return len(self.tokens)

    def fetch(self, indices: Tensor, epoch: int) -> Batch:
        tokens = self.tokens[indices]
        labels = tokens.clone()
        labels[..., : self.start] = IGNORED
        return tokens, labels
