"""Equations of docstrings as SVG: drawn by matplotlib's mathtext, so that a page needs no fonts and no scripts."""

from __future__ import annotations

import html
import inspect
import re
import textwrap
from collections.abc import Iterator, Sequence
from functools import cache

from torch import nn

SIZE = 15  # of the letters, in pixels
BREAK = re.compile(
    r"\\\\|(?<=[,;.])\s*\\;|\\q?quad|\n(?=\s*[\\\w][^=\n+-]{0,24}=)"
)  # where an equation ends and the next begins
MATH = re.compile(r"\.\. math::(.*(?:\n(?:[ ]+.*|(?=\n)))*)")  # what stands behind it, and indented below
CASES = re.compile(r"\\begin\{cases\}(.*?)\\end\{cases\}", re.DOTALL)
# what mathtext does not know -> what looks like it
SPELLED = (
    (r"\\tfrac", r"\\frac"),
    (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
    (r"\\sqrt\s*(\\?[A-Za-z]+)", r"\\sqrt{\1}"),
    (r"\\[bB]ig+[lr]?(?![a-z])|\\textstyle|\\nolimits|&", ""),
    (r"\\le(?![a-z])", r"\\leq"),
    (r"\\ge(?![a-z])", r"\\geq"),
    (r"\\[lr]Vert", r"\\Vert"),
    (r"\\iff", r"\\Leftrightarrow"),
    (r"\\dots(?![a-z])", r"\\ldots"),
)


def equations(model: nn.Module, most: int = 4) -> list[tuple[str, list[str]]]:
    """(class, lines of LaTeX) of the modules inside a model whose docstrings have an equation, from the outside in."""
    found: dict[str, list[str]] = {}
    for module in model.modules():
        kind = type(module)
        if kind.__name__ not in found and (lines := _math(kind)):
            found[kind.__name__] = lines
    return list(found.items())[:most]


def described(model: nn.Module, most: int = 6) -> list[tuple[str, str]]:
    """(class, first sentence of its docstring) of the zoo's modules inside a model, from the outside in."""
    kinds = dict.fromkeys(type(module) for module in model.modules())
    named = [kind for kind in kinds if kind.__module__.startswith("zoo.") and kind.__doc__]
    return [(kind.__name__, _sentence(str(kind.__doc__))) for kind in named][:most]


def _sentence(text: str) -> str:
    return " ".join(re.split(r"(?<=\.)\s", inspect.cleandoc(text).split("\n\n")[0])[0].replace("``", "").split())


def _math(kind: type) -> list[str]:
    """Lines of all ``.. math::`` blocks of a class's own docstring."""
    if not kind.__module__.startswith("zoo.") or not kind.__doc__:
        return []
    text, lines = inspect.cleandoc(kind.__doc__), []
    for block in MATH.findall(text):
        block = CASES.sub(lambda cases: r"\{" + re.sub(r"\\\\", ";", cases[1]).replace("&", r"\ "), block)
        lines += [one for part in BREAK.split(textwrap.dedent(block)) if (one := " ".join(part.split()))]
    return lines


@cache
def drawn(latex: str) -> str:
    """One line of LaTeX as an SVG that takes the colour of the text; as code where mathtext cannot read it."""
    from matplotlib.textpath import TextPath

    spelled = re.sub(r"\\text\{([^}]*)\}", lambda text: r"\mathrm{" + text[1].replace(" ", r"\ ") + "}", latex)
    for pattern, replacement in SPELLED:
        spelled = re.sub(pattern, replacement, spelled)
    try:
        path = TextPath((0, 0), f"${spelled.strip().rstrip(',')}$", size=SIZE)
    except ValueError:  # what it cannot parse
        return f"<code>{html.escape(latex)}</code>"
    box = path.get_extents()
    width, height = box.width + 2, box.height + 2
    return (
        f'<svg class="formula" role="img" aria-label="{html.escape(latex)}" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="{box.x0 - 1:.1f} {-box.y1 - 1:.1f} {width:.1f} {height:.1f}">'
        f'<path d="{"".join(_commands(path))}"/></svg>'
    )


def _commands(path) -> Iterator[str]:
    """Of a path whose y grows upwards."""
    letters = {1: "M", 2: "L", 3: "Q", 4: "C", 79: "Z"}
    for vertices, code in path.iter_segments(simplify=False):
        yield letters[int(code)] + ("" if code == 79 else _numbers(vertices))


def _numbers(vertices: Sequence[float]) -> str:
    return " ".join(f"{-v if i % 2 else v:.1f}".removesuffix(".0") for i, v in enumerate(vertices))
