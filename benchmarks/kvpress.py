"""SnapKV, StreamingLLM, DuoAttention and ThinK beside NVIDIA's kvpress: what is kept, the next logits, and the time.

    zoo bench kvpress                  # writes benchmarks/results/kvpress.{json,md}
    zoo bench kvpress --length 512 --no-save

kvpress 0.5.5 wants transformers below 5.3 and this library's peers a newer one, so it is no extra of this package: give
it an environment of its own (``pip install kvpress``, and this package without its extras). Both sides have the same
weights: a transformer of four blocks, at random, written by ``zoo.convert`` and read by transformers' Llama. Both read
one prompt, keep an eighth of it, and go on with the same tokens. A slot of theirs is known by its key.

What is kept of the prompt must be the same. So must the logits be, but for two definitions: StreamingLLM evicts while
it decodes, and there only once, so that one step is compared; and the prompt of DuoAttention is read by streaming heads
here, as its authors do, and in full there, so that only what is kept can agree.

Expected: neither prompt nor step takes longer here, by any method.
"""

from __future__ import annotations

import importlib
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import zoo
from zoo.benchmarks.common import command_line, last_paragraph, publish
from zoo.cache import DuoAttention, Policy, SnapKV, StreamingLLM, ThinK
from zoo.layers.cache.pruning import governed_parts
from zoo.layers.step import programmed

SIZES: dict[str, Any] = {"vocab_size": 256, "dim": 512, "depth": 4, "num_heads": 8, "num_kv_heads": 2, "mlp_dim": 1024}
KEPT, STEPS, ROUNDS, WINDOW, SINK = 8, 16, 5, 32, 4  # an eighth is kept
GATES = tuple((0.9 - 0.2 * layer, 0.8 - 0.2 * layer) for layer in range(SIZES["depth"]))


class Method(NamedTuple):
    """Our policy, their press, and for how many steps after the prompt both say the same; None for not even that."""

    policy: Policy
    press: Any
    same: int | None


def methods(length: int) -> dict[str, Method]:
    """At an eighth of a prompt; half of the heads stream, half of the channels go."""
    presses: Any = importlib.import_module("kvpress")
    budget, ratio = length // KEPT, 1 - 1 / KEPT

    class Gated(presses.DuoAttentionPress):
        """With given gates: the published ones are of large models."""

        def post_init_from_model(self, model: Any) -> None:
            gates = torch.tensor(GATES)
            first = gates.flatten().argsort(stable=True)[: round(self.head_compression_ratio * gates.numel())]
            mask = torch.zeros(gates.numel(), dtype=torch.bool)
            mask[first] = True
            self.sink_size, self.recent_size, self.streaming_mask = SINK, WINDOW, mask.view_as(gates)

    return {
        "SnapKV": Method(SnapKV(budget, WINDOW, 5), presses.SnapKVPress(ratio, WINDOW, 5), STEPS),
        "StreamingLLM": Method(
            StreamingLLM(SINK, budget - SINK, renumber=False), presses.StreamingLLMPress(ratio, SINK), 1
        ),
        "DuoAttention": Method(DuoAttention(GATES, 0.5, SINK, WINDOW), Gated(0.5), None),
        "ThinK": Method(ThinK(0.5, recent=0, window=WINDOW), presses.ThinKPress(0.5, WINDOW), STEPS),
    }


class Ours:
    """A state of this library, and what it keeps."""

    def __init__(self, model: Any, policy: Policy):
        self.model, self.state = model, model.init_state(1, cache=policy)

    def read(self, tokens: Tensor, position: int) -> Tensor:
        """The last logits (V,), as ``zoo.generate`` reads on."""
        with programmed(self.model):
            return self.model(tokens, self.state, logits_to_keep=1)[0, -1]

    def kept(self, full: Sequence[Tensor]) -> list[list[set[int]]]:
        """Positions, of ThinK channels, of each layer and key-value head."""
        found = []
        for state in self.state.states:
            heads: dict[int, set[int]] = {}
            groups = getattr(state, "heads", None)
            held: list[Any] = list(governed_parts([state]))
            for number, part in enumerate(held):
                which = groups[number].tolist() if isinstance(groups, tuple) else range(part.heads)
                lost = part.notes["channels"][0, :, part.thin.shape[-1] :] if "channels" in part.notes else None
                own = part.position[0].expand(part.heads, -1) if lost is None else lost
                heads |= {head: set(row.tolist()) for head, row in zip(which, own, strict=True)}
            found.append([heads[head] for head in sorted(heads)])
        return found


class Theirs:
    """A cache of transformers under a press."""

    def __init__(self, model: Any, press: Any):
        transformers: Any = importlib.import_module("transformers")
        self.model, self.press, self.cache = model, press, transformers.DynamicCache()

    def read(self, tokens: Tensor, position: int) -> Tensor:
        """The last logits (V,); a prompt is compressed."""
        at = torch.arange(position, position + tokens.shape[1])
        given = {"past_key_values": self.cache, "cache_position": at, "position_ids": at[None], "logits_to_keep": 1}
        if position:
            return self.model(tokens, **given).logits[0, -1]
        with self.press(self.model):
            return self.model(tokens, **given).logits[0, -1]

    def kept(self, full: Sequence[Tensor]) -> list[list[set[int]]]:
        """As those of ours; ``full``: all keys (H, T, d) of each layer."""
        found = []
        for layer, keys in enumerate(full):
            own = self.cache.layers[layer].keys[0]  # (H, n, d)
            masked = getattr(self.model.model.layers[layer].self_attn, "masked_key_indices", None)
            lost = (own == 0).all(1)  # (H, d)
            heads = []
            for head, (held, every) in enumerate(zip(own, keys, strict=True)):
                if lost.any():
                    heads.append(set(lost[head].nonzero()[:, 0].tolist()))
                    continue
                there = set(torch.cdist(held, every).argmin(1).tolist())
                hidden = set() if masked is None else set(masked[2][masked[1] == head].tolist())
                heads.append(there - hidden)
            found.append(heads)
        return found


@torch.inference_mode()
def measured(name: str, method: Method, ours: Any, theirs: Any, tokens: Tensor, length: int) -> dict[str, Any]:
    """Both sides in turns: medians, the share of heads that keep the same, and the largest difference of logits."""
    whole = Theirs(theirs, _Nothing())
    whole.read(tokens[:, :length], 0)
    full = [layer.keys[0] for layer in whole.cache.layers]
    seconds: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
    kept, said = {}, {}
    for _ in range(ROUNDS + 1):
        for side, make in (
            ("ours", lambda: Ours(ours, method.policy)),
            ("theirs", lambda: Theirs(theirs, method.press)),
        ):
            run, started = make(), time.perf_counter()
            logits = [run.read(tokens[:, :length], 0)]
            prefilled = time.perf_counter()
            kept.setdefault(side, run.kept(full))
            stepping = time.perf_counter()
            logits += [run.read(tokens[:, place : place + 1], place) for place in range(length, length + STEPS)]
            seconds[side].append((prefilled - started, (time.perf_counter() - stepping) / STEPS))
            said[side] = torch.stack(logits)
    pairs = [pair for layers in zip(kept["ours"], kept["theirs"], strict=True) for pair in zip(*layers, strict=True)]
    difference = (said["ours"] - said["theirs"]).abs().amax(1)
    times = {
        f"{side}_{what}_ms": 1e3 * statistics.median(column)
        for side, runs in seconds.items()
        for what, column in zip(("prefill", "step"), zip(*runs[1:], strict=True), strict=True)
    }
    return {
        "method": name, "length": length, "heads": len(pairs), "heads_that_agree": sum(a == b for a, b in pairs),
        "difference": None if method.same is None else difference[: method.same + 1].max().item(),
        **times,
    }  # fmt: skip


class _Nothing:
    """A press that keeps everything."""

    def __call__(self, model: Any) -> Any:
        return torch.inference_mode()


def both(folder: Path) -> tuple[Any, Any]:
    """The same weights here and in transformers' Llama."""
    transformers: Any = importlib.import_module("transformers")
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    ours: Any = zoo.create_model("transformer_nano", **SIZES, initializer_range=0.05).eval()
    zoo.save_model(ours, folder / "ours")
    zoo.convert(folder / "ours", folder / "theirs", to="transformers")
    return ours, transformers.LlamaForCausalLM.from_pretrained(folder / "theirs").eval()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("kvpress", __doc__)
    parser.add_argument("--length", type=int, default=2048, help="tokens of the prompt")
    options = parser.parse_args(arguments)
    try:
        tried = methods(options.length)
    except ImportError as error:
        parser.error(f"kvpress cannot be imported ({error}); `pip install kvpress`, in an environment of its own")
    tokens = torch.randint(256, (1, options.length + STEPS), generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = both(Path(folder))
    records = [measured(name, method, ours, theirs, tokens, options.length) for name, method in tried.items()]
    columns = ["method", "heads that keep the same", "logits differ by", "prompt, ms", "kvpress", "step, ms", "kvpress"]
    rows = [
        [r["method"], f"{r['heads_that_agree']} of {r['heads']}",
         "-" if r["difference"] is None else f"{r['difference']:.0e}",
         *(f"{r[f'{side}_{what}_ms']:.1f}" for what in ("prefill", "step") for side in ("ours", "theirs"))]
        for r in records
    ]  # fmt: skip
    title = f"{options.length} tokens, an eighth kept, {STEPS} steps, float32"
    slower = [
        f"{r['method']} ({what})"
        for r in records for what in ("prefill", "step") if r[f"ours_{what}_ms"] > r[f"theirs_{what}_ms"]
    ]  # fmt: skip
    verdict = f"Missed by {', '.join(slower)}." if slower else "Met."
    found, shown = {"sizes": SIZES, "verdict": verdict, "records": records}, (title, columns, rows)
    before = f"# Beside kvpress\n\n{last_paragraph(__doc__)}\n\n"
    publish("kvpress", options, found, shown, before=before, after=f"{verdict}\n")
