"""LongSpec's draft layer: one block that reads a window of the text and the model's last cache."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.changes import Change, apply
from zoo.checkpoints import bundled
from zoo.config import require_positive
from zoo.generate.decode import evaluating
from zoo.language.base import LanguageModel
from zoo.layers import CausalAttention, ModelState, RMSNorm, SlidingWindowAttention, State, SwiGLU
from zoo.layers.attention.cached import AnchoredState, CachedAttention
from zoo.layers.attention.keys import Keys, Place
from zoo.layers.attention.state import KeyValueState
from zoo.layers.attention.tree import visible
from zoo.layers.linear import capped, head_loss
from zoo.layers.states import parts

ModelType = TypeVar("ModelType", bound=LanguageModel)


class DraftLayer(nn.Module):
    r"""A block between a model's embedding and its head, both the model's own.

    .. math::
        x \leftarrow x + \mathrm{window}(n_1(x)), \quad x \leftarrow x + \mathrm{cache}(n_2(x)), \quad
        x \leftarrow x + \mathrm{SwiGLU}(n_3(x))

    The attention of the first step sees the newest tokens of the text; that of the second the keys and values which the
    model's last attention has cached: the layer itself keeps a window of its own, however long the text.

    Args:
        dim: model width.
        attention: the model's last.
        window: newest tokens that the first attention sees.
        mlp_dim: hidden width of the SwiGLU.
        eps: of the norms.

    Paper: Yang et al., "LongSpec", arXiv 2502.17421, section 3.1.
    """

    def __init__(self, dim: int, attention: CausalAttention, window: int, mlp_dim: int, eps: float):
        super().__init__()
        heads, kv_heads, head_dim = attention.num_heads, attention.num_kv_heads, attention.head_dim
        rotary = attention.rotary
        self.window_norm, self.cache_norm, self.mlp_norm = (RMSNorm(dim, eps) for _ in range(3))
        self.window_attention = SlidingWindowAttention(
            dim, heads, window, kv_heads, None if rotary is None else rotary.base, head_dim, bias=True
        )
        self.cache_attention = CachedAttention(dim, attention)
        self.mlp = SwiGLU(dim, mlp_dim)

    def forward(
        self, x: Tensor, held: Keys, mask: Tensor | None, attention: CausalAttention, state: Any = None
    ) -> Tensor:
        """The residual stream x (B, T, dim) before the model's first block -> what its last norm reads.

        Args:
            x: (B, T, dim).
            held: the model's last cache.
            mask: (B, T, S), what is seen of it; None for all that is held, by tokens which come after it.
            attention: whose it is.
            state: of the window.
        """
        place = Place.of(x, state, None)
        x = x + self.window_attention(self.window_norm(x), state)
        mask = visible(held, place) if mask is None else mask
        x = x + self.cache_attention(self.cache_norm(x), place.position, held, mask, attention)
        return x + self.mlp(self.mlp_norm(x))


def last_attention(model: LanguageModel) -> CausalAttention:
    """The model's last attention, which must remember everything.

    Raises:
        ValueError: where it has none, or one of another kind.
    """
    found = [module for mixer in model.mixers for module in mixer.modules() if isinstance(module, CausalAttention)]
    if not found or isinstance(found[-1], SlidingWindowAttention) or type(found[-1].init_state(1)) is not KeyValueState:
        raise ValueError(
            f"a draft layer reads the keys that the last attention of a model has cached, all of them: "
            f"{type(model).__name__} ends with {type(found[-1]).__name__ if found else 'no such attention'}"
        )
    return found[-1]


def last_cache(state: ModelState) -> KeyValueState | AnchoredState:
    """That attention's state."""
    return [part for one in state for part in parts(one) if isinstance(part, (KeyValueState, AnchoredState))][-1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AddedDraftLayer(Change, kind="draft_layer"):
    """What ``add_draft_layer`` did."""

    window: int = 512
    """Newest tokens that the layer's own attention sees."""
    mlp_dim: int | None = None
    """Hidden width of its feed-forward layer; that of the model's width when None."""

    def install(self, model: Any) -> None:
        """Put ``model.draft_layer`` in place."""
        if not isinstance(model, LanguageModel):
            raise ValueError(f"a draft layer is for a language model, got {type(model).__name__}")
        if getattr(model, "draft_layer", None) is not None:
            raise ValueError("the model has a draft layer already: build it anew for another")
        require_positive(self, "window", "mlp_dim")
        attention, config = last_attention(model), model.config
        layer = DraftLayer(config.dim, attention, self.window, self.mlp_dim or config.dim, config.norm_eps)
        like = next(model.parameters())
        model.draft_layer = layer.to(None if like.is_meta else like.device, like.dtype).train(model.training)


def add_draft_layer(
    model: ModelType, *, window: int = 512, mlp_dim: int | None = None, pretrained: bool = False
) -> ModelType:
    """Give a model a layer that drafts for it (``draft="longspec"``), in place; its own outputs stay as they are.

    The layer has to be trained: ``zoo.train.tasks.DraftLayerTraining``, see ``zoo train docs_transformer_longspec``.
    ``zoo.save_model`` keeps it.

    Args:
        model: a language model whose last attention remembers everything, of ``create_model``.
        window: newest tokens that the layer's own attention sees.
        mlp_dim: hidden width of its feed-forward layer; that of the model's width when None.
        pretrained: load the layer that comes with the package for this model and its bundled weights; its sizes win.

    Raises:
        ValueError: for a model without such attention, one that has a draft layer, or without one to load.

    Paper: Yang et al., "LongSpec", arXiv 2502.17421.
    """
    fields: dict[str, Any] = {"window": window, "mlp_dim": mlp_dim}
    weights = {}
    if pretrained:
        fields, weights = bundled.draft_layer(str(getattr(model, "config_name", type(model).__name__)))
    apply(model, AddedDraftLayer(**fields))
    if pretrained:
        model.draft_layer.load_state_dict(weights)  # pyright: ignore
    return model


def draft_hidden(model: Any, tokens: Tensor, delay: int, anchors: int = 0, offset: int = 0) -> Tensor:
    """What the head reads of the draft layer (B, T, dim), at every place of a text at once.

    Args:
        model: with a draft layer; nothing else of it gets gradients.
        tokens: (B, T).
        delay: how far behind a token the model's cache ends: the d-th token of a draft is read with one of d.
        anchors, offset: of ``AnchoredState``.

    Raises:
        ValueError: for an offset in a model that has more than attention.
    """
    batch, length = tokens.shape
    with torch.no_grad(), evaluating(model):
        state = model.init_state(batch, length)
        if offset:
            state = state.of(_anchored(one, anchors, offset) for one in state)
        model(tokens, state, logits_to_keep=1)
        x = model.enter(tokens)
    cache, attention = last_cache(state), last_attention(model)
    held = Keys(cache.key[:, :, :length], cache.value[:, :, :length], torch.arange(length, device=tokens.device))
    own = model.draft_layer.window_attention.init_state(batch)
    if offset:
        own = AnchoredState(own.key, own.value, anchors=anchors, offset=offset)
    seen = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril(-delay)
    return model.forward_norm(model.draft_layer(x, held, seen.expand(batch, -1, -1), attention, own))


def draft_loss(model: Any, tokens: Tensor, labels: Tensor, delay: int, anchors: int = 0, offset: int = 0) -> Tensor:
    """Mean loss in nats of the draft layer's guess of every next token; arguments as of ``draft_hidden``, with labels
    (B, T) as of a language model."""
    hidden = draft_hidden(model, tokens, delay, anchors, offset)
    shifted = F.pad(labels[:, 1:], (0, 1), value=-100)
    return head_loss(model.head, hidden.flatten(0, 1), shifted.flatten(), softcap=model.softcap)


def draft_logits(model: Any, tokens: Tensor, delay: int) -> Tensor:
    """The draft layer's logits (B, T, vocab_size) at every place of a text, see ``draft_hidden``."""
    return capped(model.head(draft_hidden(model, tokens, delay)), model.softcap)


def _anchored(state: State, anchors: int, offset: int) -> AnchoredState:
    if not isinstance(state, KeyValueState):
        raise ValueError(
            f"positions can be set off in a model of attention alone, this one keeps a {type(state).__name__}: train "
            "its draft layer with max_offset=0"
        )
    return AnchoredState(state.key, state.value, anchors=anchors, offset=offset)
