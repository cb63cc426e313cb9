"""An operation defined once: from its implementations and the shapes of its results to an operator of torch.

``define`` makes the custom op, its fake, the op of its backward, the gradient formulas and the count of FLOPs, so that
``torch.compile``, ``torch.export``, ``torch.func`` and torch's FLOP counter see one operator for an operation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, get_args, get_type_hints

import torch
from torch import Tensor

from zoo.kernels.autograd import recomputed_gradients, recorded_gradients
from zoo.kernels.dispatch import Implementation, Operation, compute_dtype, under_transforms

FORMULAS: dict[str, Callable[..., int]] = {}  # name of an operator -> its FLOPs, of the shapes of its arguments
COMPUTE: dict[str, Callable[..., Any]] = {}  # name of an operator -> what computes it, below the operator
_SCHEMA = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    int: "SymInt",
    float: "float",
    float | None: "float?",
    bool: "bool",
    torch.dtype: "ScalarType",
}


class Like(NamedTuple):
    """A result of an operator: on the device of ``tensor``, of its shape and dtype where no others are given."""

    tensor: Tensor
    shape: Sequence[int] | None = None
    dtype: torch.dtype | None = None

    def make(self) -> Tensor:
        """An uninitialised tensor of that kind."""
        return self.tensor.new_empty(self.size, dtype=self.dtype)

    def fit(self, found: Tensor) -> Tensor:
        """``found`` in the dtype of the result."""
        dtype = self.dtype or self.tensor.dtype
        return found if found.dtype == dtype else found.to(dtype)

    @property
    def size(self) -> Sequence[int]:
        return self.tensor.shape if self.shape is None else self.shape


def define(
    operation: Operation,
    differentiable: str,
    shapes: Callable[..., Any],
    *,
    flops: Callable[..., int],
    extras: int = 0,
    adjoint: Callable[..., tuple] | None = None,
) -> Operator:
    """The torch operator ``zoo::<operation>``: a function of the arguments of ``shapes`` and, last, ``impl``.

    Implementations whose ``backward`` is None are differentiated by recomputation, and have second derivatives and all
    of ``torch.func``. The others have first derivatives, by ``torch.func.grad`` and ``vmap`` too, and say so when more
    is asked of them. ``torch.compile`` takes ``torch.func.grad`` over an operator into one graph (torch 2.15 does, 2.11
    does not). Where all results are empty no implementation runs, and the gradients are zeros.

    Args:
        operation: its implementations. ``forward(*tensors, *options)`` gives one tensor or a tuple of them, which are
            cast to the dtypes that ``shapes`` says; ``backward(*gradients, *kept, *tensors, *options)`` a gradient for
            each differentiable input, or for each that is not None.
        differentiable: names of the inputs that have a gradient, separated by spaces.
        shapes: annotated function of the operator's arguments, tensors first; returns a ``Like`` for each result, as
            ``Like`` or ``tuple[Like, ...]``. The operator's schema and its fake are made from it.
        flops: count of the forward, of the arguments with shapes in place of tensors. The backward counts twice as
            much: what it recomputes is not counted.
        extras: how many of the last results are for the backward alone: no gradient goes through them, and the backward
            gets all results ("kept"), behind the gradients.
        adjoint: for an operation that is its own gradient, of its first input: the arguments of that call, from the
            arriving gradient and the arguments behind the first.
    """
    return Operator(operation, differentiable.split(), shapes, flops, extras, adjoint)


class Operator:
    """What ``define`` makes."""

    def __init__(self, operation, differentiable, shapes, flops, extras, adjoint):
        arguments, results = schema(shapes)
        names = [argument.split() for argument in arguments]
        self.operation, self.shapes, self.adjoint = operation, shapes, adjoint
        self.num_tensors = sum(kind.startswith("Tensor") for kind, _ in names)
        self.differentiable = [name in differentiable for _, name in names[: self.num_tensors]]
        self.arriving, self.kept = results - extras, results if extras else 0
        before = [f"Tensor gradient{i}" for i in range(self.arriving)] + [f"Tensor kept{i}" for i in range(self.kept)]
        formula = (self._save, self._gradients) if adjoint is None else (self._save_rest, self._adjoint_gradient)
        self.forward = register(operation.name, arguments, results, self._run, self._fake, *formula, flops)
        if adjoint is None:
            self.backward = register(
                f"{operation.name}_backward", [*before, *arguments], None, self._run_backward, self._fake_backward,
                *first_derivatives_only(operation), lambda *shapes: 2 * flops(*shapes[len(before) :]),
            )  # fmt: skip

    def __call__(self, *inputs: Any) -> Any:
        """The results for the arguments of ``shapes`` and the name of an implementation."""
        if torch.compiler.is_compiling():
            return self.forward(*inputs)
        inputs, impl = inputs[:-1], self.operation.choice(inputs[-1])
        if under_transforms() and (plain := self.operation.plain(impl, inputs[0].device)):
            return _one_or_all(self._compute(plain, inputs, self._likes(inputs)))
        return self.forward(*inputs, impl)

    def _compute(self, chosen: Implementation, inputs: Sequence[Any], likes: Sequence[Like]) -> tuple[Tensor, ...]:
        tensors, options = inputs[: self.num_tensors], inputs[self.num_tensors :]
        found = chosen.forward(*chosen.prepare(compute_dtype(*tensors), *tensors), *options)
        return tuple(like.fit(t) for like, t in zip(likes, _as_tuple(found), strict=True))

    def _likes(self, inputs: Sequence[Any]) -> tuple[Like, ...]:
        likes = self.shapes(*inputs)
        return (likes,) if isinstance(likes, Like) else likes

    def _run(self, *inputs: Any) -> Any:
        inputs, impl = inputs[:-1], inputs[-1]
        chosen, likes = self.operation.resolve(impl, inputs[0].device), self._likes(inputs)
        if all(0 in like.size for like in likes):
            return _one_or_all(tuple(like.make() for like in likes))
        return _one_or_all(tuple(_owned(t) for t in self._compute(chosen, inputs, likes)))

    def _fake(self, *inputs: Any) -> Any:
        return _one_or_all(tuple(like.make() for like in self._likes(inputs[:-1])))

    def _run_backward(self, *arguments: Any) -> list[Tensor]:
        before, (*inputs, impl) = self._split(arguments)
        tensors, options, wanted = inputs[: self.num_tensors], inputs[self.num_tensors :], self._wanted(inputs)
        chosen = self.operation.resolve(impl, tensors[0].device)
        if all(0 in like.size for like in self._likes(inputs)):
            return [torch.zeros_like(t) for t in wanted if t is not None]
        prepared = chosen.prepare(compute_dtype(*tensors), *before, *tensors)
        if chosen.backward is None:
            arriving, leaves = prepared[: self.arriving], prepared[len(before) :]
            found = recomputed_gradients(lambda *t: _as_tuple(chosen.forward(*t, *options)), leaves, arriving)
        else:
            found = chosen.backward(*prepared, *options)
        if len(found) == len(wanted):
            found = [g for g, t in zip(found, wanted, strict=True) if t is not None]
        given = [t for t in wanted if t is not None]
        return [_owned(g.to(t.dtype)) for g, t in zip(found, given, strict=True)]

    def _fake_backward(self, *arguments: Any) -> list[Tensor]:
        _, inputs = self._split(arguments)
        return [t.new_empty(t.shape) for t in self._wanted(inputs) if t is not None]

    def _split(self, arguments: Sequence[Any]) -> tuple[Sequence[Tensor], Sequence[Any]]:
        """Of the backward: what stands before the arguments of the forward, and these."""
        before = self.arriving + self.kept
        return arguments[:before], arguments[before:]

    def _wanted(self, inputs: Sequence[Any]) -> list[Tensor | None]:
        return [t for t, named in zip(inputs, self.differentiable, strict=False) if named]

    def _save(self, ctx, inputs, output) -> None:
        results = _as_tuple(output) if self.kept else ()
        if results:
            ctx.mark_non_differentiable(*results[self.arriving :])
        ctx.save_for_backward(*results, *inputs[: self.num_tensors])
        ctx.options = inputs[self.num_tensors :]

    def _gradients(self, ctx, *arriving: Tensor) -> tuple[Tensor | None, ...]:
        arriving, saved, (*options, impl) = arriving[: self.arriving], ctx.saved_tensors, ctx.options
        tensors, none = saved[self.kept :], [None] * len(ctx.options)
        if torch.is_grad_enabled() and (plain := self.operation.plain(impl, tensors[0].device)):
            likes = self._likes((*tensors, *options))
            found = recorded_gradients(lambda *t: self._compute(plain, (*t, *options), likes), tensors, arriving)
            return *found, *none
        found = iter(self.backward(*arriving, *saved, *options, impl))
        wanted = zip(tensors, self.differentiable, strict=True)
        return *(next(found) if named and t is not None else None for t, named in wanted), *none

    def _save_rest(self, ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs[1 : self.num_tensors])
        ctx.options = inputs[self.num_tensors :]

    def _adjoint_gradient(self, ctx, arriving: Tensor) -> tuple[Tensor | None, ...]:
        *options, impl = ctx.options
        inputs = self.adjoint(arriving, *ctx.saved_tensors, *options)
        return self.forward(*inputs, impl), *(None for _ in inputs)


def schema(shapes: Callable[..., Any]) -> tuple[list[str], int]:
    """Arguments of an operator ("Tensor x", ..., "str impl") and the number of its results, of annotations."""
    types = get_type_hints(shapes)
    results = len(get_args(types.pop("return"))) or 1
    return [*(f"{_SCHEMA[kind]} {name}" for name, kind in types.items()), "str impl"], results


def register(
    name: str,
    arguments: Sequence[str],
    results: int | None,
    run: Callable,
    fake: Callable,
    save: Callable,
    gradients: Callable,
    flops: Callable[..., int],
) -> Callable[..., Any]:
    """One operator ``zoo::name`` of torch's, with its gradient formula, which torch.func's transforms use as well.

    Args:
        arguments: of the schema, as in "Tensor x".
        results: how many tensors it returns; None for a list of any length.
        run: computes it.
        fake: its results without data.
        save: ``save(ctx, inputs, output)`` keeps what ``gradients(ctx, *arriving)`` needs, as in an autograd.Function.
        flops: its count, of the arguments with shapes in place of tensors.
    """
    returned = "Tensor[]" if results is None else f"({', '.join(['Tensor'] * results)})"
    operator = torch.library.custom_op(
        f"zoo::{name}", run, mutates_args=(), schema=f"({', '.join(arguments)}) -> {returned}"
    )
    operator.register_fake(fake)
    operator.register_autograd(gradients, setup_context=save)
    FORMULAS[name], COMPUTE[name] = flops, run

    class Traced(torch.autograd.Function):
        """The operator below torch.func's transforms, which do not see the formula of a custom op; as plain functions,
        which ``torch.compile`` follows."""

        @staticmethod
        def forward(*inputs):
            found = operator(*inputs)
            return tuple(found) if isinstance(found, list) else found

        @staticmethod
        def setup_context(ctx, inputs, output):
            save(ctx, inputs, output)

        @staticmethod
        def backward(ctx, *arriving):
            return gradients(ctx, *arriving)

    class Transformed(Traced):
        """The same, with the rules that a compiler does not follow."""

        @staticmethod
        def jvp(ctx, *tangents):
            raise RuntimeError(_MORE.format(name, "backward-mode derivatives"))

        @staticmethod
        def vmap(info, in_dims, *inputs):
            """One call for each part, as the operations have no common batch axis for all their inputs."""
            parts = [
                Transformed.apply(*(x if d is None else x.select(d, i) for x, d in zip(inputs, in_dims, strict=True)))
                for i in range(info.batch_size)
            ]
            if isinstance(parts[0], Tensor):
                return torch.stack(parts), 0
            return tuple(map(torch.stack, zip(*parts, strict=True))), (0,) * len(parts[0])

    def call(*inputs: Any) -> Any:
        if not under_transforms():
            return operator(*inputs)
        return (Traced if torch.compiler.is_compiling() else Transformed).apply(*inputs)

    return call


def first_derivatives_only(operation: Operation) -> tuple[Callable, Callable]:
    """``save`` and ``gradients`` of the backward's operator: an error that says where second derivatives are."""

    def gradients(ctx, *arriving):
        raise RuntimeError(_MORE.format(operation.name, "first derivatives"))

    return lambda ctx, inputs, output: None, gradients


_MORE = (
    "{}: this implementation has {} only; for others choose one that autograd differentiates itself, as in "
    "impl='reference' or zoo.kernels.implementation('reference')"
)


def _as_tuple(found: Any) -> tuple[Tensor, ...]:
    return (found,) if isinstance(found, Tensor) else tuple(found)


def _one_or_all(results: tuple[Tensor, ...]) -> Any:
    return results[0] if len(results) == 1 else results


def _owned(tensor: Tensor) -> Tensor:
    """Contiguous, and no part of a larger tensor: what the result of an operator must be."""
    whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)
