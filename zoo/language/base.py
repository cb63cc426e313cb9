"""What all language models share: embedding, blocks, final norm, head, loss, states, initialisation."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels.dispatch import compute_dtype
from zoo.language.block import Block, LanguageConfig
from zoo.language.ids import check_call
from zoo.language.rows import RowStates, by_rows
from zoo.language.steps import StepsAsProgram
from zoo.layers import Mixer, ModelState, RMSNorm
from zoo.layers.cache.build import Cache, assigned, finish, governed, tell
from zoo.layers.cache.pruning import Pruning
from zoo.layers.depth.exits import TokenExits, probabilities
from zoo.layers.linear import capped, head_loss
from zoo.layers.moe.experts import RoutedExperts
from zoo.layers.precision import computes_in
from zoo.layers.quant import count_parameters
from zoo.layers.recompute import recompute


class LanguageModel(StepsAsProgram, ABC):
    """Tokens to logits through a stack of blocks; a family says how block i is built.

    Attributes:
        straight: the blocks are run one after the other.
        exits: where tokens may leave them, see ``zoo.add_exits``; None for nowhere.
    """

    straight: ClassVar[bool] = True

    def __init__(self, config: LanguageConfig):
        super().__init__()
        self.config = config
        self.embedding = self.build_embedding()
        self.blocks = nn.ModuleList(self.build_block(index) for index in range(config.depth))
        self.norm = self.build_norm()
        self.head = nn.Linear(self.embedding.embedding_dim, config.vocab_size, bias=False)
        self.grad_checkpointing = False
        self.by_rows = False
        self.exits: TokenExits | None = None
        self.init_weights()
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight

    def build_embedding(self) -> nn.Embedding:
        """The token embedding; the head has its width."""
        return nn.Embedding(self.config.vocab_size, self.config.dim)

    def build_norm(self) -> nn.Module:
        """The norm before the head."""
        return RMSNorm(self.config.dim, self.config.norm_eps)

    @property
    def stream_dim(self) -> int:
        """Width of the residual stream."""
        return self.embedding.embedding_dim

    @property
    def norm_factor(self) -> float:
        """What the norm before the head is multiplied by."""
        return 1.0

    @property
    def softcap(self) -> float | None:
        """Bound of the logits by a tanh, which is no part of the head: that may be replaced. None for none."""
        return None

    @abstractmethod
    def build_block(self, index: int) -> Block:
        """Block ``index`` of ``config.depth``."""

    @property
    def mixers(self) -> list[Mixer]:
        """The sequence mixers of the blocks, in order."""
        return [cast(Block, block).mixer for block in self.blocks]

    @property
    def shared_modules(self) -> list[nn.Module]:
        """What more blocks call than the one that has it as a submodule; sharding gathers it for each call."""
        return []

    @property
    def experts(self) -> list[RoutedExperts]:
        """The feed-forward layers with experts, in order."""
        return [module for module in self.blocks.modules() if isinstance(module, RoutedExperts)]

    def init_weights(self) -> None:
        """Normal embedding; the projections back into the residual stream divided by the square root of their number
        (GPT-2, section 2.3), of which the experts of a layer are one. Everything else is initialised by its layer."""
        nn.init.normal_(self.embedding.weight, std=self.config.initializer_range)
        nn.init.normal_(self.head.weight, std=self.config.initializer_range)
        outputs = [
            module
            for block in self.blocks
            for name, module in block.named_modules()
            if isinstance(module, nn.Linear) and name in ("mixer.out_proj", "mlp.w2", "mlp.shared.w2")
        ]
        experts = self.experts
        for linear in outputs:
            nn.init.kaiming_uniform_(linear.weight, a=math.sqrt(5))
            with torch.no_grad():
                linear.weight /= math.sqrt(len(outputs) + len(experts))
        for layer in experts:
            layer.init_weights()
            layer.divide_output(math.sqrt(len(outputs) + len(experts)))

    def init_normal(self, *residual: str) -> None:
        """Linear layers of the blocks normal, those into the residual stream over sqrt(2 depth); their biases 0.

        Args:
            residual: how the names of the latter end, from a dot on.
        """
        std = self.config.initializer_range
        for name, module in self.blocks.named_modules():
            if isinstance(module, nn.Linear):
                into_residual = f".{name}".endswith(tuple(f".{end}" for end in residual))
                nn.init.normal_(module.weight, std=std / math.sqrt(2 * self.config.depth) if into_residual else std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self,
        tokens: Tensor,
        state: ModelState | None = None,
        *,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        seq_idx: Tensor | None = None,
        num_scored: int | Tensor | None = None,
        embedded: Tensor | None = None,
    ) -> Tensor:
        """Logits, or the loss when labels are given.

        Args:
            tokens: (B, T) int64 in [0, vocab_size).
            state: from ``init_state``; the call continues from it and advances it.
            labels: (B, T) int64, the tokens themselves: position t is scored against labels[:, t + 1]; -100 is not
                scored, nor is the first token of a packed sequence.
            logits_to_keep: logits of the last so many positions only; 0 for all.
            seq_idx: (B, T) integers: packed sequences that do not see each other. Negative ids are padding, which is
                skipped wherever it stands: its logits mean nothing and it is not scored. The first sequence continues
                that of the state when its id is that of the state's newest token, or when no id was given before.
            num_scored: what the sum of the losses is divided by, in place of the tokens scored in this call: the tokens
                scored in all calls whose gradients are added up, so that each token counts the same.
            embedded: (B, T, dim), what ``enter`` makes of the tokens, where some stand for something else.

        Returns:
            Logits (B, T or logits_to_keep, vocab_size), or the mean loss in nats a scored token.

        Raises:
            ValueError: for tokens, labels, seq_idx or a state of the wrong shape, dtype or range.
        """
        several = self.by_rows and (tokens.shape[:1] != (1,) or seq_idx is not None)
        if several or isinstance(state, RowStates):
            self._check(tokens, None, labels, seq_idx, logits_to_keep, num_scored)
            if labels is not None:
                raise ValueError("the loss of a batch is a mean over its rows: within batch_invariant leave out labels")
            if embedded is not None:
                raise ValueError("within batch_invariant rows are read from their tokens: leave out embedded")
            return by_rows(self, tokens, state, seq_idx, logits_to_keep)
        self._check(tokens, state, labels, seq_idx, logits_to_keep, num_scored)
        if embedded is not None and embedded.shape != (*tokens.shape, self.stream_dim):
            raise ValueError(
                f"embedded must be (batch, length, dim) {(*tokens.shape, self.stream_dim)}, got {tuple(embedded.shape)}"
            )
        entered, order = embedded, None
        stepper = self.stepper  # another thread may end using it
        if labels is None and stepper is not None and self.is_step(tokens, state, seq_idx):
            entered = self.enter(tokens) if entered is None else entered
            if (stepped := stepper.logits(entered, state, computes_in(self).dtype)) is not None:
                return stepped
        if seq_idx is not None:  # padding to the beginning of each row
            order = (seq_idx >= 0).to(torch.uint8).argsort(dim=1, stable=True)
            tokens, seq_idx = tokens.gather(1, order), seq_idx.gather(1, order)
            labels = None if labels is None else labels.gather(1, order)
            entered = None if entered is None else entered.take_along_dim(order[..., None], 1)
        x = self.forward_residual(tokens, state, seq_idx, entered)
        if labels is not None:
            return self.loss(self.forward_norm(x), tokens, labels, seq_idx, num_scored)
        if order is not None:
            x = x.take_along_dim(order.argsort(dim=1)[..., None], 1)
        return self.read_out(x[:, -logits_to_keep:])

    def loss(
        self,
        hidden: Tensor,
        tokens: Tensor,
        labels: Tensor,
        seq_idx: Tensor | None = None,
        num_scored: int | Tensor | None = None,
    ) -> Tensor:
        """What is minimised, of hidden (B, T, dim) as the head reads it; the other arguments are those of ``forward``,
        with padding at the beginning of the rows."""
        return self.cross_entropy(hidden, labels, seq_idx, num_scored)

    def forward_residual(
        self,
        tokens: Tensor,
        state: ModelState | None = None,
        seq_idx: Tensor | None = None,
        entered: Tensor | None = None,
    ) -> Tensor:
        """tokens (B, T), padding first -> the residual stream (B, T, dim) past all blocks; ``entered`` is what
        ``enter`` makes of the tokens, where that is known."""
        if state is not None and state.governed:
            tell(state, tokens)
        x = self.forward_blocks(self.enter(tokens) if entered is None else entered, state, seq_idx)
        if state is not None and state.governed:
            finish(state, tokens, x, self.read_out)
        return x

    def enter(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) -> the residual stream (B, T, dim) before the first block."""
        x = self.embed(tokens)
        return x.to(compute_dtype(x)) if self.config.residual_in_fp32 else x

    def read_out(self, x: Tensor) -> Tensor:
        """The residual stream (B, T, dim) -> logits (B, T, vocab_size)."""
        return capped(self.head(self.forward_norm(x)), self.softcap)

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) -> (B, T, dim)."""
        return self.embedding(tokens)

    def forward_blocks(self, x: Tensor, state: ModelState | None, seq_idx: Tensor | None) -> Tensor:
        """The residual stream (B, T, dim) through all blocks."""
        pruning = Pruning.of(state, x, seq_idx) if state is not None and state.governed else None
        if pruning is None and (stepped := self.step_blocks(x, state, seq_idx)) is not None:
            return stepped
        leaving = None if self.exits is None else self.exits.leaving(x, self.read, seq_idx)
        for index, block in enumerate(self.blocks):
            if leaving is not None and leaving.over:
                if state is not None:
                    cast(Block, block).remember(x, state[index], seq_idx)
                continue
            if self.grad_checkpointing and self.training and state is None:
                y = recompute(block, x, None, seq_idx)
            else:
                y = block(x, None if state is None else state[index], seq_idx)
            x = y if leaving is None else leaving.after(index, x, y)
            if pruning is not None:
                x, seq_idx = pruning.after(index, x)
        if leaving is not None:
            leaving.end()
        return x if pruning is None else pruning.whole(x)

    def read(self, x: Tensor) -> Tensor:
        """The residual stream (B, T, dim) after any block -> probabilities (B, T, vocab_size) of the next token."""
        return probabilities(capped(self.head(self.forward_norm(x)), self.softcap))

    def init_state(
        self,
        batch_size: int,
        max_length: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        cache: Cache = None,
    ) -> ModelState:
        """The state before the first token.

        Args:
            batch_size: rows.
            max_length: tokens that are reserved where the state grows with length.
            device, dtype: of the state; those of the model when None.
            cache: what attention remembers and sees: a policy of ``zoo.cache`` or its name, or a mapping from numbers
                of mixers to policies; all other attention forgets nothing.

        Raises:
            ValueError: for a policy where there is no attention that it could govern.
        """
        policies = [policy and policy.learnt(self) for policy in assigned(cache, len(self.mixers))]
        for policy in policies:
            if policy is not None and policy.prunes and self.exits is not None:
                raise ValueError(
                    f"{type(policy).__name__} ends tokens between blocks, and so do exits: take one of them"
                )
            if policy is not None and policy.prunes and not self.straight:
                raise ValueError(
                    f"{type(policy).__name__} ends tokens between blocks that are run one after the other; those of "
                    f"{type(self).__name__} are not: take another policy"
                )

        def states(rows: int) -> ModelState:
            made = [
                mixer.init_state(rows, max_length if policy is None else None, device, dtype)
                for mixer, policy in zip(self.mixers, policies, strict=True)
            ]
            state = ModelState(made if cache is None else governed(made, policies))
            state.governed = cache is not None
            return state

        return RowStates([states(1) for _ in range(batch_size)]) if self.by_rows else states(batch_size)  # type: ignore[list-item]

    def state_size(self, length: int) -> int:
        """Numbers the state holds for one sequence after ``length`` tokens."""
        return sum(mixer.state_size(length) for mixer in self.mixers)

    def num_active_parameters(self) -> int:
        """Parameters that one token uses: all but those of the experts it does not visit (tied tensors once)."""
        idle = sum(layer.num_idle_parameters for layer in self.experts)
        return count_parameters(self) - idle

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay must leave alone, besides biases and norms."""
        return {
            f"{prefix}.{name}"
            for prefix, module in self.named_modules()
            for name in getattr(module, "float32_parameters", ())
        }

    def resize_token_embeddings(self, vocab_size: int) -> None:
        """Give the model another number of tokens: the first ones keep their rows of embedding and head.

        Rows of new tokens are the mean of all old ones. The parameters are new: build an optimiser afterwards.

        Raises:
            ValueError: for a vocab_size below 1, or an embedding or head that is no plain table of weights.
        """
        tables = {"embedding": self.embedding, "head": self.head}
        for name, module in tables.items():
            if not isinstance(getattr(module, "weight", None), nn.Parameter):
                raise ValueError(
                    f"{name} has no weights to resize, it is {type(module).__name__}: resize before replacing it"
                )
        self.config = dataclasses.replace(self.config, vocab_size=vocab_size)
        tied = self.head.weight is self.embedding.weight
        self.embedding.weight = _resized(self.embedding.weight, vocab_size)
        self.head.weight = self.embedding.weight if tied else _resized(self.head.weight, vocab_size)
        self.embedding.num_embeddings = self.head.out_features = vocab_size

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of storing its activations."""
        self.grad_checkpointing = enable

    def cross_entropy(
        self,
        hidden: Tensor,
        labels: Tensor,
        seq_idx: Tensor | None = None,
        num_scored: int | Tensor | None = None,
    ) -> Tensor:
        """Mean loss in nats of hidden (B, T, dim) as the head reads it, each step against the label of the next."""
        labels = labels if seq_idx is None else only_scored(labels, seq_idx)
        shifted = F.pad(labels[:, 1:], (0, 1), value=-100)
        mean = head_loss(self.head, hidden.flatten(0, 1), shifted.flatten(), softcap=self.softcap)
        return mean if num_scored is None else mean * (shifted != -100).sum() / num_scored

    def _check(self, tokens, state, labels, seq_idx, logits_to_keep, num_scored) -> None:
        check_call(self.config.vocab_size, tokens, labels, seq_idx, logits_to_keep, num_scored)
        if state is not None:
            if len(state) != len(self.mixers):
                raise ValueError(
                    f"the state has {len(state)} blocks, the model {len(self.mixers)}: make it by model.init_state"
                )
            batch = next(tensor.shape[0] for _, tensor in state[0].tensors())
            if batch != tokens.shape[0]:
                raise ValueError(f"the state is for a batch of {batch}, the tokens are a batch of {tokens.shape[0]}")


def only_scored(labels: Tensor, seq_idx: Tensor) -> Tensor:
    """Labels (B, T), -100 at padding and at the first token of each of the packed sequences."""
    starts = F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0))
    return labels.masked_fill(starts | (seq_idx < 0), -100)


def _resized(weight: Tensor, rows: int) -> nn.Parameter:
    """The first of the rows, and the mean of all in place of missing ones."""
    with torch.no_grad():
        new = weight.mean(0, keepdim=True).expand(max(0, rows - len(weight)), -1)
        return nn.Parameter(torch.cat([weight[:rows], new]), requires_grad=weight.requires_grad)
