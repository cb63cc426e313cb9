"""Learning from pairs of answers, one of which is preferred."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.options import require_at_least
from zoo.train.policy import log_probs, online_divergence, preference_loss
from zoo.train.tasks.policy import PolicyTask

Batch = tuple[Tensor, Tensor]
IGNORED = -100


class PreferenceOptimization(PolicyTask):
    r"""HyPO: a contrast of pairs that were collected before, and a divergence of answers that are drawn now.

    .. math::
        L = -\log \sigma\Big(\beta \log \frac{\pi(y^+|x) \, \pi_{ref}(y^-|x)}{\pi_{ref}(y^+|x) \, \pi(y^-|x)}\Big)
        + \lambda \, \mathrm{KL}(\pi \,\|\, \pi_{ref})

    The first is DPO's, which is all there is at lambda 0; the second is estimated by ``online_samples`` answers of the
    policy to each prompt, see `zoo.train.policy.online_divergence`, and needs neither labels nor rewards. Batches are
    `(tokens (B, 2, T), labels (B, 2, T))`: of each prompt the answer preferred and the other, with labels -100 but on
    the answers; the prompts of a batch are of one length. Logs `{val,test}/loss`, DPO's, and `/accuracy`, the share of
    pairs whose preferred answer has become the likelier one, in ratios; and of one answer drawn to each prompt `/kl`,
    the mean of log pi - log pi_ref in nats an answer, `/reward`, and `/win`, how often it is worth more than the two of
    the pair, of which half counts where they are worth the same.

    Args:
        model: see `Task`, which also has the other arguments.
        reference: pi_ref, a name with weights or "local-dir:FOLDER".
        beta: see above.
        online_weight: lambda.
        online_samples: answers to each prompt in a step; with two and more each is compared with the others' mean.
        draw_seed: of the answers.

    Raises:
        ValueError: for a number out of range.

    Papers: Song et al., "The Importance of Online Data: Understanding Preference Fine-tuning via Coverage", arXiv
    2406.01462; Rafailov et al., "Direct Preference Optimization", arXiv 2305.18290. The authors' beta and lambda are
    not known to us.
    """

    def __init__(
        self,
        model: str | nn.Module,
        model_args: dict[str, Any] | None = None,
        *,
        reference: str,
        beta: float = 0.1,
        online_weight: float = 0.1,
        online_samples: int = 2,
        draw_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, model_args, reference=reference, draw_seed=draw_seed, **kwargs)
        if beta <= 0 or online_weight < 0:
            raise ValueError(f"beta must be above 0 and online_weight at least 0, got {beta} and {online_weight}")
        require_at_least(1, online_samples=online_samples)
        self.beta, self.online_weight, self.online_samples = beta, online_weight, online_samples

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        margins = self._margins(self.trained, batch)
        loss = preference_loss(margins, self.beta)
        right = (margins[:, 0] > margins[:, 1]).float().mean()
        if not self.online_weight:
            return self.log_training(loss, accuracy=right)
        own, base, _ = self._online(self.trained, batch, self.global_step, self.online_samples)
        divergence = online_divergence(own, base, self.online_samples)
        return self.log_training(loss + self.online_weight * divergence, accuracy=right, kl=(own - base).mean())

    def _margins(self, model: nn.Module, batch: Batch) -> Tensor:
        """log pi - log pi_ref of both answers, (B, 2)."""
        tokens, labels = (part.flatten(0, 1) for part in batch)
        start = _prompt_length(labels)
        ratios = log_probs(model, tokens, start) - self.base_log_probs(tokens, start)
        return (ratios * (labels[:, start:] != IGNORED)).sum(1).view(-1, 2)

    def _online(self, model: nn.Module, batch: Batch, number: int, copies: int) -> tuple[Tensor, Tensor, Tensor]:
        """log pi and log pi_ref (B copies,) of answers that are drawn, and these (B copies, A)."""
        tokens, labels = batch
        start = _prompt_length(labels.flatten(0, 1))
        said = self.draw(model, tokens[:, 0, :start], tokens.shape[2] - start, number, copies=copies)
        own, base = log_probs(model, said, start), self.base_log_probs(said, start)
        return own.sum(1), base.sum(1), said[:, start:]

    def evaluate(self, batch: Batch, number: int, split: str) -> None:
        margins = self._margins(self.evaluated, batch)
        own, base, said = self._online(self.evaluated, batch, number, 1)
        tokens = batch[0][:, :, -said.shape[1] :]
        worth, before = self.reward(said, None), torch.stack([self.reward(tokens[:, i], None) for i in (0, 1)], 1)
        self.log_means(
            split,
            loss=-F.logsigmoid(self.beta * (margins[:, 0] - margins[:, 1])),
            accuracy=margins[:, 0] > margins[:, 1],
            kl=own - base,
            reward=worth,
            win=((worth[:, None] > before).float() + (worth[:, None] == before).float() / 2).mean(1),
        )


def _prompt_length(labels: Tensor) -> int:
    """Tokens (B, T) before the first that any row scores."""
    return int((labels != IGNORED).any(0).nonzero()[0])
