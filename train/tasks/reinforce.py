"""Learning from what answers are worth."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from zoo.layers.options import require_at_least
from zoo.train.policy import log_probs, reinforce_loss, until_end
from zoo.train.tasks.policy import PolicyTask

Batch = tuple[Tensor, Any]


class ReMax(PolicyTask):
    r"""REINFORCE, where the worth of an answer is counted from that of the policy's likeliest one.

    .. math::
        -\sum_t \gamma^{L - t} (r(x, y) - r(x, y^*)) \log \pi(y_t | x, y_{<t}), \quad y \sim \pi, \; y^* \text{ greedy}

    divided by the number of tokens. No other network learns or estimates anything. The baseline depends on the prompt
    alone, so the gradient's mean stays what it is: what all answers to a prompt are worth more changes nothing.
    Batches are `(prompts (B, P), targets)`; the data's `task` has `reward(answers (B, A), targets)`, such as
    `zoo.train.data.SortLetters`. Logs `{train,val,test}/reward` of answers drawn, and `{val,test}/greedy`, that of the
    likeliest ones.

    Args:
        model: see `Task`, which also has the other arguments.
        answer_length: tokens of an answer at most.
        baseline: "greedy", or "none" for REINFORCE as it was.
        gamma: discount a token, as in the authors' code; 1 for the paper's sum.
        clip: bound of an advantage's size.
        top_p: draw among the likeliest tokens that together reach this probability, as the authors' code does with
            0.9; None: of all, where the mean is exact.
        end: token that ends an answer; it still counts.
        reference: model that the policy is to stay near, token by token; None for no such term.
        kl_weight: of log pi_ref - log pi of a token, added to what that token is worth.
        draw_seed: of the answers.

    Raises:
        ValueError: for a number out of range, or an unknown baseline.

    Paper: Li et al., "ReMax: A Simple, Effective, and Efficient Reinforcement Learning Method for Aligning Large
    Language Models", arXiv 2310.10505; numbers as the authors' code has them.
    """

    def __init__(
        self,
        model: str | nn.Module,
        model_args: dict[str, Any] | None = None,
        *,
        answer_length: int,
        baseline: Literal["greedy", "none"] = "greedy",
        gamma: float = 0.99,
        clip: float = 5.0,
        top_p: float | None = None,
        end: int | None = None,
        reference: str | None = None,
        kl_weight: float = 0.05,
        draw_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, model_args, reference=reference, draw_seed=draw_seed, **kwargs)
        require_at_least(1, answer_length=answer_length)
        if baseline not in ("greedy", "none") or not 0 < gamma <= 1 or clip <= 0 or kl_weight < 0:
            raise ValueError(
                "baseline must be 'greedy' or 'none', gamma in (0, 1], clip above 0 and kl_weight at least 0, got "
                f"{baseline!r}, {gamma}, {clip} and {kl_weight}"
            )
        self.answer_length, self.baseline, self.gamma, self.clip = answer_length, baseline, gamma, clip
        self.top_p, self.end, self.kl_weight = top_p, end, kl_weight

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        prompts, targets = batch
        start = prompts.shape[1]
        tokens = self._drawn(self.trained, prompts, self.global_step, top_p=self.top_p)
        worth = self.reward(tokens[:, start:], targets)
        best = self._drawn(self.trained, prompts, 0, greedy=True) if self.baseline == "greedy" else None
        counted = worth if best is None else worth - self.reward(best[:, start:], targets)
        own, said = log_probs(self.trained, tokens, start), until_end(tokens[:, start:], self.end)
        penalties = None
        if self.reference is not None:
            penalties = self.kl_weight * (self.base_log_probs(tokens, start) - own.detach())
        advantages = counted.clamp(-self.clip, self.clip)
        loss = reinforce_loss(own, said, advantages, gamma=self.gamma, penalties=penalties)
        return self.log_training(loss, reward=worth.float().mean())

    def _drawn(self, model: nn.Module, prompts: Tensor, number: int, **options: Any) -> Tensor:
        return self.draw(model, prompts, self.answer_length, number, end=self.end, **options)

    @torch.no_grad()
    def evaluate(self, batch: Batch, number: int, split: str) -> None:
        prompts, targets = batch
        for name, greedy in (("reward", False), ("greedy", True)):
            tokens = self._drawn(self.evaluated, prompts, number, greedy=greedy)
            self.log_means(split, **{name: self.reward(tokens[:, prompts.shape[1] :], targets)})
