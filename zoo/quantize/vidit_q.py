"""ViDiT-Q: a grid a token, and channels balanced anew in every range of diffusion's times."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.layers.quant import Format, Record, install, matrices
from zoo.layers.quant.inputs import Inputs
from zoo.quantize.calibration import Calibration, model_outputs, watching
from zoo.quantize.method import Method
from zoo.quantize.q_diffusion import require_diffusion, row_format
from zoo.quantize.store import Store

SMALLEST = 1e-5  # of an input or a weight: a channel may be zero on all of the calibration
MOMENTUM = 0.95  # of the average of what calls have


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViDiTQ(Method, name="vidit_q", calibrated=True):
    r"""Divide the channels of a linear layer's inputs by factors of their own in every range of times, and round what
    is left a token at a time.

    .. math::
        W x = (W \mathrm{diag}(c)) (\mathrm{diag}(1 / c) x), \quad
        c_j = \frac{a_j^{\alpha}}{\max_o |W_{oj}|^{1 - \alpha}}

    with :math:`a_j` the moving average, over the calls in a range, of the mean over images of :math:`\max_t |x_{tj}|`.
    A matrix is kept once for each range, and all of them count as bytes. Of a grid of exponents, and no factors and a
    single copy, the model takes the one whose outputs change least, all else rounded as it will be. A token's scale and
    zero, with ``activation_bits``, are of its own smallest and largest number: no image depends on the others of its
    batch, nor on whether it is drawn with its class or without. ``rotate`` turns the divided channels into one another
    as well, which evens out those that are large at some times only. Convolutions and embeddings are rounded to
    nearest.

    ``calibration`` is ``Calibration.of_samples(model)``, where none is given that of 64 images in 20 steps. A row of a
    matrix has one scale, where no ``group_size`` says otherwise. The authors leave the first and last layers and those
    of times and classes as they are: ``skip=("patch_embed.*", "time.*", "classes.*", "head.*")``.

    Paper: Zhao et al., "ViDiT-Q: Efficient and Accurate Quantization of Diffusion Transformers for Image and Video
    Generation", arXiv 2406.02540; which layers get more bits by metrics of their own is not here.
    """

    times: tuple[float, ...] = (0.5,)
    """That separate ranges; () for one."""
    steps: int = 10
    """Exponents tried between 0 and 1, both of which are; 0: no factors."""
    rotate: bool = False
    """Turn channels into one another."""

    def __post_init__(self):
        object.__setattr__(self, "times", tuple(self.times))
        super().__post_init__()
        Inputs(times=self.times)
        if self.steps < 0:
            raise ValueError(f"steps must be at least 0, got {self.steps}")

    def format(self, columns: int) -> Format:
        """A row is a group where no size is asked for."""
        return row_format(super().format(columns), self.group_size)

    def check(self, model: nn.Module) -> None:
        """Refuse what has no times."""
        require_diffusion(model, "vidit_q")

    def prepare(
        self, model: nn.Module, names: Sequence[str], calibration: Calibration | None, store: Store
    ) -> Mapping[str, Any]:
        """Factors of the best exponent, for each range (R, C); {} of a linear layer without."""
        assert calibration is not None
        linears = [name for name in names if type(model.get_submodule(name.rpartition(".")[0])) is nn.Linear]
        alphas = [index / self.steps for index in range(self.steps + 1)] if self.steps else []
        store.expect(1 + len(alphas) + bool(alphas))
        typical = store.once("typical inputs", lambda: typical_inputs(model, linears, calibration, self.times))
        choices: list[dict[str, Any]] = [{name: {} for name in linears}]
        for alpha in alphas:
            choices.append({
                name: {"balance": torch.stack([factors(matrices(model, name), a, alpha) for a in typical[name]])}
                for name in linears
            })  # fmt: skip
        if not alphas:
            return choices[0]
        expected = model_outputs(model, calibration)
        losses = []
        for index, known in enumerate(choices):

            def loss(known: Mapping[str, Any] = known) -> dict[str, Tensor]:
                return {
                    "loss": (model_outputs(self._rounded(model, names, known), calibration) - expected).square().mean()
                }

            losses.append(store.once(f"loss {index}", loss)["loss"].item())
        return choices[losses.index(min(losses))]

    def record(self, matrix: Tensor, form: Format, known: Any) -> Record:
        """Nearest codes, for each range those of the balanced matrix."""
        plain = dataclasses.replace(form, activation_bits=None)
        if known is None:
            return Record.nearest(matrix, plain)
        balance = known.get("balance")
        inputs = Inputs(
            zeros=form.activation_bits is not None, balanced=balance is not None, rotated=self.rotate,
            times=self.times if balance is not None else (),
        )  # fmt: skip
        each = [
            Record.nearest(inputs.moved_columns(matrix, c), plain) for c in (balance if balance is not None else [None])
        ]
        held = [dict(record.named_parameters()) for record in each]
        found = {
            name: torch.stack([one[name] for one in held]) if inputs.times else tensor
            for name, tensor in held[0].items()
        }
        return Record.holding(matrix.shape, dataclasses.replace(form, inputs=inputs), {**found, "balance": balance})

    def _rounded(self, model: nn.Module, names: Sequence[str], known: Mapping[str, Any]) -> nn.Module:
        """A copy with records."""
        records = {}
        for name in names:
            matrix = matrices(model, name).float()
            records[name] = self.record(matrix, self.format(matrix.shape[-1]), known.get(name))
        found = copy.deepcopy(model)
        install(found, records)
        return found


def typical_inputs(
    model: nn.Module, names: Sequence[str], calibration: Calibration, times: Sequence[float]
) -> dict[str, Tensor]:
    """a (R, C), float32, of the linear layer of each weight, in each range of times.

    Raises:
        ValueError: for a range of which the calibration has no inputs.
    """
    modules = {name: model.get_submodule(name.rpartition(".")[0]) for name in names}
    ranges: list[dict[str, Tensor]] = []
    for span, part in enumerate(in_ranges(calibration, times)):
        if part is None:
            raise ValueError(f"the calibration has no times in range {span} of those that {tuple(times)} separate")
        found: dict[str, Tensor] = {}

        def see(name: str, x: Tensor, found: dict[str, Tensor] = found) -> None:
            largest = x.float().abs().flatten(1, -2).amax(1) if x.dim() > 2 else x.float().abs()
            now = largest.mean(0)
            found[name] = MOMENTUM * found[name] + (1 - MOMENTUM) * now if name in found else now

        with torch.no_grad(), watching(modules, see):
            part.run(model)
        ranges.append(found)
    return {name: torch.stack([found[name] for found in ranges]) for name in names}


def in_ranges(calibration: Calibration, times: Sequence[float]) -> list[Calibration | None]:
    """The images of each range of times; None for none."""
    found: list[list[Any]] = [[] for _ in range(len(times) + 1)]
    for images, t, *rest in calibration.batches:
        place = torch.bucketize(t, t.new_tensor(times))
        for span in place.unique().tolist():
            found[span].append(tuple(tensor[place == span] for tensor in (images, t, *rest)))
    return [Calibration(batches) if batches else None for batches in found]


def factors(matrix: Tensor, typical: Tensor, alpha: float) -> Tensor:
    """c (C,) of one range, with a mean logarithm of 0."""
    w = matrix.abs().amax(0).float().clamp(min=SMALLEST)
    c = (typical.clamp(min=SMALLEST) ** alpha / w ** (1 - alpha)).log()
    return (c - c.mean()).exp()
