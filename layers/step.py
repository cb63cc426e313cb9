"""A decoding step of a stack of blocks as one program of C: what each layer adds to it, and when it may run.

A layer says here what it computes for one token, by its exact type: a subclass, a hook, an adapter or anything else in
a layer's place is unknown, and its model then steps as always, which is also the reference. The program is made at the
first step and anew where a tensor was written to or a module replaced.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from zoo.kernels import native
from zoo.kernels.dispatch import AUTOCAST_DEVICES, is_automatic
from zoo.kernels.operator import under_transforms
from zoo.kernels.step_program import SOURCE, Program, Value
from zoo.kernels.step_program.program import DTYPES, ROWS
from zoo.layers.attention.causal import CausalAttention
from zoo.layers.attention.rotary import Rotary
from zoo.layers.attention.state import KeyValueState
from zoo.layers.conv import CausalConv1d
from zoo.layers.linear import WideBias, decoding, is_row_linear, is_watched
from zoo.layers.mlp import SwiGLU
from zoo.layers.norm import GatedRMSNorm, RMSNorm
from zoo.layers.parallel import ParallelMixers
from zoo.layers.quant.layers import Linear
from zoo.layers.ssm.mamba import Mamba, MambaState
from zoo.layers.ssm.mamba2 import Mamba2, Mamba2State, SiluGate
from zoo.layers.state import State
from zoo.layers.states import JointState

Describe = Callable[["Writer", Any, Value], Value]
DESCRIPTIONS: dict[type[nn.Module], Describe] = {}


class Undescribed(Exception):
    """A layer has no operations here."""


def describes(*kinds: type[nn.Module]) -> Callable[[Describe], Describe]:
    """The function adds the operations of layers of exactly these types."""

    def register(function: Describe) -> Describe:
        DESCRIPTIONS.update(dict.fromkeys(kinds, function))
        return function

    return register


class Writer(Program):
    """A program in the making, of modules, and what ties it to the states of a model."""

    def __init__(self, rows: int):
        super().__init__(rows)
        self.path: Callable[[State], State] = lambda state: state
        self.binders: list[list[Binder]] = []
        self.places: list[tuple[dict, str, Any]] = []  # dictionary, name and module or tensor that must be there
        self.hooks: list[dict] = []

    def call(self, module: nn.Module, x: Value) -> Value:
        """What ``module`` makes of x."""
        self.visit(module)
        if type(module) not in DESCRIPTIONS:
            raise Undescribed(type(module).__name__)
        return DESCRIPTIONS[type(module)](self, module, x)

    def visit(self, module: nn.Module) -> None:
        """Note what ``module`` is made of."""
        replaced = "forward" in vars(module) and not is_row_linear(module)
        if is_watched(module) or replaced or module.training:
            raise Undescribed(type(module).__name__)
        self.hooks += [module._forward_pre_hooks, module._forward_hooks]
        for held in (module._modules, module._parameters):
            for name, one in held.items():
                self.places.append((held, name, one))
                if isinstance(one, Tensor) and (type(one) not in (Tensor, nn.Parameter) or one.device.type != "cpu"):
                    raise Undescribed(f"{type(module).__name__} with {type(one).__name__}")

    def bind(self, kind: type[State], *names: tuple[str, int, int]) -> None:
        """Before each run the state of this layer is looked at: see ``Recurrent``."""
        self.binders[-1].append(Recurrent(self, self.path, kind, names))

    @contextmanager
    def part(self, index: int) -> Iterator[None]:
        """Within it the state is one part of the layer's."""
        before = self.path
        self.path = lambda state: cast(JointState, before(state)).parts[index]
        try:
            yield
        finally:
            self.path = before

    @property
    def is_current(self) -> bool:
        """Whether the model is as it was when this was written."""
        return not any(self.hooks) and all(d.get(n) is v for d, n, v in self.places) and super().is_current


class Binder:
    """What ties operations to the state of a layer, which ``path`` finds in that of the block."""

    def __init__(self, writer: Writer, path: Callable[[State], State], kind: type[State]):
        self.writer, self.path, self.kind = writer, path, kind

    def ready(self, state: State) -> bool:
        """Whether the state is of the plain kind that the operations know."""
        return type(state) is self.kind and state.seq_idx is None


class Recurrent(Binder):
    """Tensors of a recurrent state: (name, number of the record, argument of the old tensor, next to which is the new).

    A tensor is replaced, as another may hold it; one that a step has made and nobody else holds is written to.
    """

    def __init__(self, writer: Writer, path: Callable[[State], State], kind: type[State], names: Sequence[tuple]):
        super().__init__(writer, path, kind)
        self.names = names

    def ready(self, state: State) -> bool:
        """Contiguous tensors of a batch."""
        tensors = [getattr(state, name) for name, *_ in self.names] if super().ready(state) else []
        return bool(tensors) and all(
            len(t) == self.writer.rows and t.is_contiguous() and t.dtype in (DTYPES if i == 0 else DTYPES[:1])
            for i, t in enumerate(tensors)
        )

    def advance(self, state: State) -> None:
        """The operations read the old tensors and write the new ones, which may be the same."""
        for name, number, argument in self.names:
            old, row = getattr(state, name), self.writer.arguments[number]
            row[argument] = old.data_ptr()
            if not getattr(old, "of_a_step", False) or _held(old) != ALONE:
                new = torch.empty_like(old)
                new.of_a_step = True  # type: ignore[attr-defined]
                setattr(state, name, new)
                self.writer.holding.append(old)
                old = new
            row[argument + 1] = old.data_ptr()
            if name == "conv":
                row[argument + 2] = old.dtype == torch.bfloat16
        state.seen += 1


def _held(tensor: Tensor) -> tuple[int, int]:
    """References to the tensor, and to its memory: those of views too."""
    return sys.getrefcount(tensor), torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)  # type: ignore[attr-defined]


def _alone() -> tuple[int, int]:
    held = {"one": torch.empty(0)}
    old = held["one"]
    return _held(old)


ALONE = _alone()  # what is counted in ``advance`` where only the state holds a tensor


class Cached(Binder):
    """A dense cache of keys and values."""

    def __init__(self, writer: Writer, path: Callable[[State], State], turn: int, attend: int):
        super().__init__(writer, path, KeyValueState)
        self.turn, self.attend = turn, attend

    def ready(self, state: State) -> bool:
        """No positions, ids or padding, and room for one more."""
        if not super().ready(state):
            return False
        cache = cast(KeyValueState, state)
        plain = cache.position is None and cache.ids is None and cache.padding is None and not cache.latent
        held = cache.key, cache.value
        fits = all(t.is_contiguous() and t.dtype in DTYPES and len(t) == self.writer.rows for t in held)
        return plain and fits and cache.key.dtype == cache.value.dtype and (cache.room is None or cache.room > 0)

    def advance(self, state: State) -> None:
        """The next slot is written, and all are read."""
        cache = cast(KeyValueState, state)
        cache.make_room(1)
        key, value, capacity = cache.key.data_ptr(), cache.value.data_ptr(), cache.key.shape[2]
        brief = cache.key.dtype == torch.bfloat16
        turn, attend = self.writer.arguments[self.turn], self.writer.arguments[self.attend]
        turn[6:12] = key, value, brief, capacity, cache.filled, cache.seen
        cache.filled += 1
        cache.seen += 1
        attend[4:6] = key, value
        attend[7:10] = brief, capacity, cache.filled
        attend[11] = self.writer.memory_for(int(attend[12]) * capacity * self.writer.rows)


class Steps(Writer):
    """The steps of a batch of so many rows through blocks."""

    def __init__(self, blocks: Sequence[nn.Module], rows: int, dim: int):
        super().__init__(rows)
        self.holding: list[Tensor] = []
        self.weights = torch.empty(0)
        self.x = Value(torch.zeros(rows, dim))
        for block in blocks:
            self.again()
            self.binders.append([])
            self.visit(block)
            if type(block) not in DESCRIPTIONS:
                raise Undescribed(type(block).__name__)
            DESCRIPTIONS[type(block)](self, block, self.x)
        self.finish()

    def memory_for(self, count: int) -> int:
        """Pointer to at least so many floats, which the layers share."""
        if self.weights.numel() < count:
            self.weights = torch.empty(count)
        return self.weights.data_ptr()

    def __call__(self, x: Tensor, states: Sequence[State]) -> Tensor | None:
        """x (B, 1, dim) past the blocks, whose states advance; None where these states are not for it."""
        pairs = [(b, b.path(s)) for bs, s in zip(self.binders, states, strict=True) for b in bs]
        if not all(binder.ready(state) for binder, state in pairs):
            return None
        for binder, state in pairs:
            binder.advance(state)
        self.x.tensor.copy_(x[:, 0])
        self.run()
        self.holding.clear()
        return self.x.tensor.to(x.dtype, copy=True)[:, None]


class Stepper:
    """The programs of a model, one for each number of rows."""

    def __init__(self, blocks: Sequence[nn.Module]):
        self.blocks, self.made = blocks, cast("dict[int, Steps | None]", {})
        self.lock = threading.Lock()  # a program has one memory

    def __call__(self, x: Tensor, states: Any) -> Tensor | None:
        """x (B, 1, dim) through the blocks, or None where they have to be called."""
        if not _is_step(x):
            return None
        with self.lock:
            return self._run(x, states)

    def _run(self, x: Tensor, states: Any) -> Tensor | None:
        steps = self.made.get(len(x))
        if steps is None and len(x) in self.made:
            return None
        if steps is None or not steps.is_current:
            self.made[len(x)] = steps = self._write(x)
        return None if steps is None else steps(x, states)

    def _write(self, x: Tensor) -> Steps | None:
        try:
            return Steps(self.blocks, len(x), x.shape[2])
        except (Undescribed, ValueError):
            return None


def _is_step(x: Tensor) -> bool:
    low = "cpu" in AUTOCAST_DEVICES and torch.is_autocast_enabled("cpu")
    return (
        x.shape[1] == 1 and 0 < len(x) <= ROWS and x.device.type == "cpu" and x.dtype in DTYPES and type(x) is Tensor
        and not torch.is_grad_enabled() and not low and not torch.compiler.is_compiling() and not under_transforms()
        and is_automatic() and not _has_any_global_hook() and torch._C._len_torch_dispatch_stack() == 0
        and native.obstacle(SOURCE, x.device) is None
    )  # fmt: skip


@contextmanager
def programmed(model: nn.Module) -> Iterator[None]:
    """As ``decoding``, and the blocks of a language model run as one program where they can."""
    held, mine = vars(model), "stepper" not in vars(model)
    held.setdefault("stepper", Stepper(model.blocks))  # type: ignore[arg-type]
    try:
        with decoding(model):
            yield
    finally:
        if mine:
            held.pop("stepper", None)


@describes(nn.Identity)
def _identity(p: Writer, module: nn.Identity, x: Value) -> Value:
    return x


@describes(nn.Linear, WideBias)
def _linear(p: Writer, module: nn.Linear, x: Value) -> Value:
    return p.linear(x, module.weight, module.bias)


@describes(Linear)
def _record(p: Writer, module: Linear, x: Value) -> Value:
    record = module.weight
    p.visit(record)
    return p.lowbit(x, record.codes, record.scale, record.zero, record.format.bits, module.bias)


@describes(RMSNorm)
def _norm(p: Writer, module: RMSNorm, x: Value) -> Value:
    width = len(module.weight)
    return p.norm(x, module.weight, module.eps, heads=x.width // width)


@describes(SwiGLU)
def swiglu_step(p: Writer, module: SwiGLU, x: Value, gate: float = 1.0) -> Value:
    """W2 (silu(gate W1 x) * W3 x)."""
    if module.act is not F.silu:
        raise Undescribed("another activation")
    first = p.times(p.call(module.w1, x), gate)
    return p.call(module.w2, p.glu(first, p.call(module.w3, x)))


@describes(ParallelMixers)
def _parallel(p: Writer, module: ParallelMixers, x: Value) -> Value:
    x = p.whole(x)
    total = p.empty(x.width)
    for index, mixer in enumerate(module.mixers):
        with p.part(index):
            y = p.call(mixer, x._replace(factor=module.input_scales[index]))
        y = y._replace(factor=y.factor * module.output_scales[index])
        p.accumulate(total, y, first=index == 0)
    return total


@describes(Mamba2)
def _mamba2(p: Writer, m: Mamba2, x: Value) -> Value:
    if m.step_rule is not None:
        raise Undescribed("another rule of steps")
    grouped = m.num_groups * m.d_state
    x = p.whole(p.call(m.in_proj, x))
    if m.multipliers:
        columns = torch.cat([torch.full((width,), scale) for width, scale in m.multipliers])
        p.kept.append(columns)
        x = p.scaled(x, columns)
    z, x, dt = x.split(m.d_inner, m.d_inner + 2 * grouped, m.num_heads)
    x, conv = _conv(p, m.conv1d, x)
    x, B, C = x.split(m.d_inner, grouped, grouped)
    y, ssm = p.ssd(x, dt, B, C, m.A_log, m.dt_bias, m.D, m.dt_limit, m.num_groups)
    p.bind(Mamba2State, ("conv", conv, 6), ("ssm", ssm, 11))
    p.visit(m.norm)
    if type(m.norm) is SiluGate:
        y = p.glu(z, y)
    elif type(m.norm) is GatedRMSNorm:
        y = p.norm(y, m.norm.weight, m.norm.eps, z, m.norm.num_groups)
    else:
        raise Undescribed(type(m.norm).__name__)
    return p.call(m.out_proj, y)


@describes(Mamba)
def _mamba(p: Writer, m: Mamba, x: Value) -> Value:
    if m.step_rule is not None:
        raise Undescribed("another rule of steps")
    x, z = p.whole(p.call(m.in_proj, x)).split(m.d_inner, m.d_inner)
    x, conv = _conv(p, m.conv1d, x)
    dt, B, C = p.call(m.x_proj, x).split(m.dt_rank, m.d_state, m.d_state)
    dt = p.call(m.dt_proj, p.call(m.dt_norm, dt))
    y, ssm = p.scan(x, dt, p.call(m.b_norm, B), p.call(m.c_norm, C), z, m.A_log, m.D)
    p.bind(MambaState, ("conv", conv, 6), ("ssm", ssm, 12))
    return p.call(m.out_proj, y)


def _conv(p: Writer, conv: CausalConv1d, x: Value) -> tuple[Value, int]:
    p.visit(conv)
    if type(conv) is not CausalConv1d:
        raise Undescribed(type(conv).__name__)
    return p.conv(x, conv.weight, conv.bias, conv.activation == "silu")


@describes(CausalAttention)
def _attention(p: Writer, m: CausalAttention, x: Value) -> Value:
    if m.softcap is not None or m.sinks is not None or not (m.rotary is None or type(m.rotary) is Rotary):
        raise Undescribed("attention with a softcap, sinks or other positions")
    q, k, v = (p.whole(p.call(proj, x)) for proj in (m.q_proj, m.k_proj, m.v_proj))
    q, k, rotary = p.call(m.q_norm, q), p.call(m.k_norm, k), m.rotary
    if rotary is not None:
        p.visit(rotary)
        scale = 1.0 if rotary.scaling is None else rotary.scaling.rotation_scale
        rotary = rotary.frequency, scale, rotary.interleaved
    turn = p.turn(q, k, v, m.head_dim, rotary)
    scale = m.head_dim**-0.5 if m.scale is None else m.scale
    y, attend = p.attend(q, m.num_kv_heads, m.head_dim, scale)
    p.binders[-1].append(Cached(p, p.path, turn, attend))
    return p.call(m.out_proj, y)
