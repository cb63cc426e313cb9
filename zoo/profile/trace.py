"""Operations of a call: their FLOPs, the bytes they move, the module they stand in, and what lives at the same time."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zoo.kernels.flops import flop_counter
from zoo.profile.record import Peaks
from zoo.profile.workspace import AsUntraced, Inside, computed, convolution

ROWS = ("embedding", "index", "index_select", "gather", "take_along_dim")  # read as much as they return


class Kernel(NamedTuple):
    """An operation that ran: its FLOPs, bytes read and written, and the modules around it from the outermost on."""

    name: str
    flops: int
    bytes: int
    inside: tuple[str, ...]


class Trace(TorchDispatchMode):
    """Notes the operations that run inside, on tensors with or without memory.

    Attributes:
        kernels: in their order.
        peak: bytes of the tensors made inside that live at the same time at most. What one operation needs and frees
            again before it returns is not seen.
        calls: module -> how often it was called.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.kernels: list[Kernel] = []
        self.calls: dict[str, int] = {}
        self.live = self.peak = 0
        self._formulas = flop_counter(display=False).flop_registry
        self._names = {module: name for name, module in model.named_modules()}
        self._inside: list[str] = []
        self._untraced = AsUntraced()
        self._held: dict[int, weakref.ref] = {}
        self._known = [t.untyped_storage() for t in (*model.parameters(), *model.buffers())]
        self._known_places = {storage._cdata for storage in self._known}

    def keep(self, tensors: Iterable[Tensor]) -> None:
        """Tensors that were there before: not counted among what lives."""
        self._known += [tensor.untyped_storage() for tensor in tensors]
        self._known_places |= {storage._cdata for storage in self._known}

    def __enter__(self) -> Trace:
        self._hooks = [
            register_module_forward_pre_hook(self._enter), register_module_forward_hook(self._leave, always_call=True),
        ]  # fmt: skip
        self._untraced.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._untraced.__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def _enter(self, module: nn.Module, _: Any) -> None:
        if (name := self._names.get(module)) is not None:
            self._inside.append(name)
            self.calls[name] = self.calls.get(name, 0) + 1

    def _leave(self, module: nn.Module, *_: Any) -> None:
        if module in self._names:
            self._inside.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self._hold(leaf, made=False)
        compute = computed(func, args)
        with Inside(self._hold):
            found = func(*args, **kwargs) if compute is None else compute(*args, **kwargs)
        results = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
        for tensor in results:
            self._hold(tensor)
        self.peak = max(self.peak, self.live + convolution(func, args, results))
        if moved := _bytes(func, args, kwargs, results):
            formula = self._formulas.get(func._overloadpacket)
            flops = 0 if formula is None else int(formula(*args, **kwargs, out_val=found))
            self.kernels.append(Kernel(func._overloadpacket.__name__, flops, moved, tuple(self._inside)))
        return found

    def _hold(self, tensor: Tensor, made: bool = True) -> None:
        """Count a tensor from now on, one that was there before only when it goes."""
        storage = tensor.untyped_storage()
        place, size = storage._cdata, storage.nbytes()
        if place in self._held or place in self._known_places:
            return

        def freed(_: Any) -> None:
            self._held.pop(place, None)
            self.live -= size

        self._held[place] = weakref.ref(storage, freed)
        self.live += size * made
        self.peak = max(self.peak, self.live)


def waterline(kernels: Iterable[Kernel], peaks: Peaks) -> float:
    r"""Seconds that operations take one after the other, each at its roofline: :math:`\sum_i \max(F_i / P, B_i / W)`.

    Paper: Lavin, "On the Efficiency of Convolutional Neural Networks", arXiv 2404.03617.
    """
    return sum(peaks.seconds(kernel.flops, kernel.bytes) for kernel in kernels)


def _bytes(func: Any, args: Any, kwargs: Any, results: list[Tensor]) -> int:
    """Read and written; 0 of views, and of what makes no more than an empty tensor."""
    name, returned = func._overloadpacket.__name__, func._schema.returns
    if returned and all(r.alias_info is not None and not r.alias_info.is_write for r in returned):
        return 0
    if name.startswith(("empty", "new_empty", "detach", "_unsafe_view", "alias")):
        return 0
    written = sum(map(_size, results))
    if name in ROWS:
        return 2 * written
    return written + sum(_size(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))


def _size(tensor: Tensor) -> int:
    """Bytes; of an expanded tensor those that there are."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
