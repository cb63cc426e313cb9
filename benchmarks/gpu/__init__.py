"""Everything that only a GPU can show, in one run of at most nine minutes: `make gpu`, or `zoo bench gpu`.

    python -m zoo.benchmarks.gpu                        # the most telling first; a run that was cut short goes on
    python -m zoo.benchmarks.gpu --device cpu --tiny    # the same steps in seconds, to see that they run

1. every operation against float64, forward and backward, each implementation (by the cases of `tests/cases`);
2. every operation against its roofline and its peers (torch; mamba-ssm, flash-linear-attention where they are there);
3. five models: forward, a training step, decoding;
4. block sizes of the Triton kernels, for `kernels/blocks.json`.

It needs torch, Triton, numpy, einops and safetensors, no network and no pytest. Each step is a file in `--work`,
written as it goes; `gpu.json`, `gpu.md` and `blocks.json` in `--output` are made of them after every step.
"""

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """See `zoo.benchmarks.gpu.script`."""
    from zoo.benchmarks.gpu import script

    return script.main(arguments)
