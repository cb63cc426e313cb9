"""What attention remembers while a model decodes: policies for ``model.init_state(..., cache=)`` and ``zoo.generate``.

>>> zoo.generate(model, tokens, 100, cache=zoo.cache.StreamingLLM(sink=4, recent=1020))
"""

from zoo.layers.cache import *  # noqa: F403
from zoo.layers.cache import __all__ as __all__
from zoo.layers.cache.names import policies as policies
