"""Language models as transformers' causal ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from zoo.integrations.transformers.base import ZooModel
from zoo.integrations.transformers.cache import StateCache
from zoo.kernels.dispatch import compute_dtype
from zoo.layers import ModelState
from zoo.layers.report import auxiliary_losses


class ZooForCausalLM(ZooModel, GenerationMixin):
    """A language model of the zoo, ``model``, with the surface of transformers' causal language models."""

    task = "language"

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: StateCache | ModelState | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        num_items_in_batch: int | Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> CausalLMOutputWithPast:
        """Logits, and the loss where labels are given; in training the loss alone, side losses included.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, T) or (B, past + T), 0 on padding, which is skipped wherever it stands.
            past_key_values: a ``StateCache`` or a model's state; the call continues from it and advances it.
            labels: (B, T) int64, shifted inside; -100 is not scored, nor is padding or a token right after it.
            use_cache: return a new cache where none is given.
            logits_to_keep: logits of the last so many positions only; 0 for all.
            num_items_in_batch: what the sum of the losses is divided by, in place of the tokens scored in this call.
            inputs_embeds, output_attentions, output_hidden_states: not supported.

        Raises:
            ValueError: for what is not supported, or see ``LanguageModel.forward``.
        """
        unsupported = {
            "inputs_embeds": inputs_embeds, "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
        }  # fmt: skip
        if wanted := [name for name, value in unsupported.items() if value is not None and value is not False]:
            raise ValueError(
                f"models of the zoo have no {', '.join(wanted)} here: leave them out; model.model is the model itself"
            )
        if input_ids is None:
            raise ValueError("input_ids must be given")
        if isinstance(past_key_values, ModelState):
            past_key_values = StateCache(past_key_values)
        if past_key_values is None and use_cache:
            past_key_values = StateCache(self.model.init_state(len(input_ids)))
        state = None if past_key_values is None else past_key_values.state
        seq_idx = _sequence_ids(attention_mask, input_ids)
        if labels is not None and self.training:
            loss = self.model(input_ids, state, labels=labels, seq_idx=seq_idx, num_scored=num_items_in_batch)
            share = 1 if num_items_in_batch is None else (labels[:, 1:] != -100).sum() / num_items_in_batch
            loss = loss + share * sum(auxiliary_losses(self.model).values())
            return CausalLMOutputWithPast(loss=loss, past_key_values=past_key_values)
        logits = self.model(input_ids, state, logits_to_keep=logits_to_keep, seq_idx=seq_idx)
        loss = None if labels is None else _loss(logits, labels, seq_idx, num_items_in_batch)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)

    accepts_loss_kwargs = True  # for Trainer: num_items_in_batch

    @property
    def _is_stateful(self) -> bool:
        """Whether the state cannot forget drafted tokens."""
        return not StateCache(self.model.init_state(1)).is_croppable

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], mode: Any, batch_size: int, max_cache_length: int
    ) -> Any:
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            if generation_config.cache_implementation is not None:
                raise ValueError(
                    f"a model of the zoo keeps its own state, got cache_implementation="
                    f"{generation_config.cache_implementation!r}: leave it out"
                )
            rows = batch_size * max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
            model_kwargs["past_key_values"] = StateCache(self.model.init_state(rows))  # drafts may pass the end
        library: Any = super()
        return library._prepare_cache_for_generation(
            generation_config, model_kwargs, mode, batch_size, max_cache_length
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The arguments of the next call of ``forward``.

        Raises:
            ValueError: for padding to the right of a prompt.
        """
        if is_first_iteration and attention_mask is not None and not bool(attention_mask[:, -1].all()):
            raise ValueError("attention_mask ends in 0: pad prompts on the left (tokenizer.padding_side = 'left')")
        library: Any = super()
        return library.prepare_inputs_for_generation(
            input_ids, attention_mask=attention_mask, is_first_iteration=is_first_iteration, **kwargs
        )

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.model.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.model.embedding = value

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.model.head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the head."""
        self.model.head = new_embeddings

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Module:
        """Give the model another number of tokens, see ``LanguageModel.resize_token_embeddings``."""
        count = self.model.config.vocab_size if new_num_tokens is None else new_num_tokens
        multiple = pad_to_multiple_of or 1
        if (count := -(-count // multiple) * multiple) != self.model.config.vocab_size:
            self.model.resize_token_embeddings(count)
        self._described = self.model.config
        self.config.config = dataclasses.asdict(self._described)
        return self.model.embedding


def _loss(logits: Tensor, labels: Tensor, seq_idx: Tensor | None, num_scored: int | Tensor | None) -> Tensor:
    """Mean cross-entropy in nats, each step against the label of the next."""
    if seq_idx is not None:
        real = seq_idx >= 0
        labels = labels.masked_fill(~(real & F.pad(real[:, :-1], (1, 0), value=True)), -100)
    labels, wide = labels[:, 1:].flatten(), compute_dtype(logits)
    total = F.cross_entropy(logits[:, :-1].flatten(0, 1).to(wide), labels, ignore_index=-100, reduction="sum")
    return total / ((labels != -100).sum().clamp(min=1) if num_scored is None else num_scored)


def _sequence_ids(mask: Tensor | None, tokens: Tensor) -> Tensor | None:
    """A mask as sequence ids (B, T): 0, and -1 on padding; None where there is none."""
    if mask is None:
        return None
    if mask.dim() != 2 or mask.shape[1] < tokens.shape[1]:
        raise ValueError(
            f"attention_mask must have a column for each of the {tokens.shape[1]} tokens, got shape {tuple(mask.shape)}"
        )
    mask = mask[:, -tokens.shape[1] :].long()
    return None if bool(mask.all()) else mask - 1
