"""The zoo: every efficient architecture is a name.

>>> import zoo
>>> model = zoo.create_model("mamba2_nano")

The public names are those of ``zoo.api``, which is imported, and torch with it, when the first of them is asked for:
what asks for none, as `zoo --help`, starts at once.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.api import *  # noqa: F403
    from zoo.api import __all__ as __all__

__version__ = "0.1.0"
# functions in modules of their own names
NAMESAKES = {
    "adapt", "convert", "expert_widths", "extend_context", "factorize", "generate", "layer_cast", "linearize",
    "offload", "predict", "profile", "quantize", "reversible", "sltrain", "sparse_tuning", "sparsify", "warmup",
}  # fmt: skip


class _Package(ModuleType):
    """What is asked for is imported, and a name of a function stays with it where its module is imported."""

    def __getattr__(self, name: str) -> Any:
        if name == "__all__" or not name.startswith("__"):  # no other is asked for by its name
            api = import_module("zoo.api")
            vars(self).update({one: vars(api)[one] for one in api.__all__}, __all__=[*api.__all__, "__version__"])
            if name in vars(self):
                return vars(self)[name]
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        own = name in NAMESAKES and isinstance(value, ModuleType)
        super().__setattr__(name, getattr(value, name) if own else value)

    def __dir__(self) -> list[str]:
        return sorted({*vars(self), *self.__all__})


sys.modules[__name__].__class__ = _Package
