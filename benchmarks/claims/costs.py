"""Operations counted: how they grow with the length of what is read, and what routing and lookup save."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import zoo
from zoo.benchmarks import merging
from zoo.benchmarks.claims.declare import Found, claim
from zoo.benchmarks.claims.tools import flops, growth, images, on_meta, parameters, tokens
from zoo.layers import RoutingAttention, ScatterbrainAttention
from zoo.layers.attention import AxialAttention
from zoo.layers.conv import ConvFirst, MBConv

LENGTHS = (1024, 2048, 4096, 8192)


def read(model: Any, length: int) -> int:
    """Operations of reading a text."""
    return flops(model, tokens(length))


def look(model: Any) -> int:
    """Operations of looking at an image."""
    return flops(model, images(model))


def linear(family: str, paper: str, source: str, cost: Callable[[int], float], lengths: Sequence[int], of: str) -> None:
    """Declare that operations grow no faster than the length, but for a logarithm.

    Args:
        of: what is counted, over what.
    """

    def run() -> Found:
        return growth(cost, lengths)

    run.__name__, run.__doc__ = f"{family}_operations_over_length", f"Operations of {of}."
    claim(
        family, paper, says="Operations grow linearly with the length, or with its product with its logarithm.",
        source=source, evidence="cost", value="exponent over the length", at_most=1.1,
    )(run)  # fmt: skip


def linear_text(family: str, model: str, paper: str, source: str, **options: Any) -> None:
    of = f"{model}{given(options)} reading {', '.join(map(str, LENGTHS))} tokens"
    linear(family, paper, source, lambda length: read(on_meta(model, **options), length), LENGTHS, of)


def linear_image(
    family: str, model: str, paper: str, source: str, sides: Sequence[int] = (16, 32, 64), **options: Any
) -> None:
    pixels = [side * side for side in sides]
    of = f"{model}{given(options)} on images of {', '.join(map(str, sides))} pixels a side, over the number of pixels"
    linear(family, paper, source, lambda area: look(on_meta(model, img_size=math.isqrt(area), **options)), pixels, of)


def given(options: dict[str, Any]) -> str:
    """ ", depth 1"."""
    return "".join(f", {name} {value}" for name, value in options.items())


linear_text("s4_text", "s4_text_lra_text", "2111.00396", "table 1: O(L log L) in training", depth=1)
linear_text("longconv", "longconv_125m", "2302.06646", "section 2: O(N log N) by the FFT", attention_layers=())
linear_text(
    "longconv_text", "longconv_text_lra_text", "2302.06646", "section 2: O(N log N) by the FFT", kernel_length=8192
)
linear_text("linformer", "linformer_nano", "2006.04768", "abstract: O(n) in time and space", max_length=LENGTHS[-1])
linear_text("scatterbrain_text", "scatterbrain_text_lra_text", "2110.15343", "section 4: linear in the length")
linear_text("mamba", "mamba_130m", "2312.00752", "abstract: linear in the length", depth=2)
linear_image("s4_pixel", "s4_pixel_lra_pathx", "2111.00396", "table 1: O(L log L) in training", depth=1)
linear_image("longconv_pixel", "longconv_pixel_lra_pathx", "2302.06646", "section 2: O(N log N) by the FFT")
linear_image("vmamba", "vanilla_vmamba_tiny", "2401.10166", "abstract: linear in the number of pixels", (224, 448, 896))
linear_image("vim", "vim_tiny", "2401.09417", "section 3.4: linear in the number of patches", (224, 448, 896))


@claim(
    "seqboat", "2306.11197", says="Attention among active tokens in a window keeps operations linear in the length.",
    source="abstract: linear inference complexity", evidence="cost", value="exponent over the length", at_most=1.1,
)  # fmt: skip
def seqboat_operations_over_length() -> Found:
    """Operations of an untrained seqboat_nano over 512 to 4096 random tokens, of which its routers activate some."""
    return _active("seqboat_nano")


@claim(
    "seqboat_text", "2306.11197", says="The same for a classifier that reads from both sides.",
    source="abstract: linear inference complexity", evidence="cost", value="exponent over the length", at_most=1.1,
)  # fmt: skip
def seqboat_text_operations_over_length() -> Found:
    """Operations of an untrained seqboat_text_nano over 512 to 4096 random tokens."""
    return _active("seqboat_text_nano")


def _active(name: str) -> Found:
    model: Any = zoo.create_model(name).eval()
    return growth(lambda n: flops(model, torch.randint(0, 15, (1, n))), (512, 1024, 2048, 4096))


@claim(
    "seqboat_pixel", "2306.11197", says="The same for images read pixel by pixel.",
    source="abstract: linear inference complexity", evidence="cost", value="exponent over the pixels", at_most=1.1,
)  # fmt: skip
def seqboat_pixel_operations_over_length() -> Found:
    """Operations of an untrained seqboat_pixel_nano on random images of 16, 32 and 64 pixels a side."""

    def cost(area: int) -> float:
        model: Any = zoo.create_model("seqboat_pixel_nano", img_size=math.isqrt(area)).eval()
        return flops(model, torch.rand(1, 1, *model.config.image_shape))

    return growth(cost, [16 * 16, 32 * 32, 64 * 64])


@claim(
    "scatterbrain", "2110.15343", says="A window and random features cost operations linear in the length.",
    source="section 4: linear in the length", evidence="cost", value="exponent over the length", at_most=1.05,
)  # fmt: skip
def scatterbrain_operations_over_length() -> Found:
    """Operations of one layer of width 64 in eval mode, over 1024 to 8192 tokens."""
    with torch.device("meta"):
        layer = ScatterbrainAttention(64, 4, window=64, num_features=32).eval()
    return growth(lambda n: flops(layer, torch.empty(1, n, 64, device="meta")), LENGTHS)


@claim(
    "routing", "2003.05997", says="With as many clusters as the root of the length attention costs its power of 1.5.",
    source="abstract: O(n^1.5 d)", evidence="cost", value="exponent over the length", at_least=1.45, at_most=1.55,
)  # fmt: skip
def routing_operations_over_length() -> Found:
    """Operations of the training form of routed attention of width 64, projections left out, over 4^4 to 4^8 tokens."""

    def cost(length: int) -> float:
        clusters = math.isqrt(length)
        with FakeTensorMode():
            layer = RoutingAttention(64, 2, clusters, length // clusters)
            return flops(layer, torch.randn(1, length, 64)) - 3 * 2 * length * 64 * 64

    return growth(cost, [4**n for n in range(4, 9)])


@claim(
    "axial", "1912.12180", says="Attention along rows and columns costs the number of pixels to the power of 1.5.",
    source="section 3.1: O(N sqrt(N)) on square images", evidence="cost", value="exponent over the pixels",
    at_least=1.45, at_most=1.55,
)  # fmt: skip
def axial_operations_over_pixels() -> Found:
    """Operations of a layer along the rows and one along the columns, projections left out, on 16 to 128 pixels a
    side."""

    def cost(area: int) -> float:
        side = math.isqrt(area)
        with torch.device("meta"):
            layers, x = [AxialAttention(16, 2, axis) for axis in (1, 2)], torch.empty(1, side, side, 16)
        return sum(flops(layer, x) for layer in layers) - 2 * 2 * area * 16 * (3 * 16 + 16)

    return growth(cost, [side * side for side in (16, 32, 64, 128)])


@claim(
    "maelre", "2507.19409", says="Merging tokens stage by stage avoids the quadratic cost of long sequences.",
    source="abstract; the rules are reconstructed", evidence="cost", value="exponent over the length", at_most=1.1,
)  # fmt: skip
def maelre_operations_over_length() -> Found:
    """Operations of maelre_nano over 1024 to 8192 tokens; those of the same encoder without merging beside it."""
    plain = growth(lambda n: merging.flops("plain", n), LENGTHS)
    merged = growth(lambda n: merging.flops("merging", n), LENGTHS)
    return Found(merged.value, {"without merging": plain.value, **merged.details})


@claim(
    "mod", "2404.02258",
    says="Blocks that read an eighth of the tokens save over half of every second block's operations.",
    source="abstract: a fraction of the FLOPs of a forward pass, over 50 % faster steps in sampling", evidence="cost",
    value="share of the dense blocks' operations", at_most=0.6,
)  # fmt: skip
def mod_operations() -> Found:
    """Operations of mod_130m in training over those of transformer_130m, both without the head, on 2048 tokens."""
    routed, dense = (_trained(on_meta(name)) for name in ("mod_130m", "transformer_130m"))
    return Found(routed / dense, {"routed": routed, "dense": dense})


def _trained(model: Any) -> int:
    """Operations in training mode on 2048 tokens, without the head."""
    model.train()
    head = 2 * 2048 * model.head.weight.numel()
    return flops(model, tokens(2048)) - head


@claim(
    "mor", "2507.10524", says="With three recursions a third of the tokens leaves after each: 25 % fewer operations.",
    source="section 4.1: 25 % fewer training FLOPs for the same tokens", evidence="cost",
    value="share of the operations of the model without routing", at_most=0.75,
)  # fmt: skip
def mor_operations() -> Found:
    """Operations of mor_360m in training on 2048 tokens over those of it with every token in every recursion, with
    head."""
    cost = {}
    for router in ("expert_choice", "every_token"):
        cost[router] = flops(on_meta("mor_360m", router=router).train(), tokens(2048))
    return Found(cost["expert_choice"] / cost["every_token"], cost)


@claim(
    "mor", "2507.10524", says="Sharing one stack of blocks over three recursions leaves a third of the parameters.",
    source="table 3: 118 M in place of 315 M, without the embedding", evidence="count", value="share of the parameters",
    at_most=0.38,
)  # fmt: skip
def mor_parameters() -> Found:
    """Parameters of mor_360m over those of smollm2_360m, both without the embedding."""
    counted = {}
    for name in ("mor_360m", "smollm2_360m"):
        model = on_meta(name)
        counted[name] = parameters(model) - model.embedding.weight.numel()
    return Found(counted["mor_360m"] / counted["smollm2_360m"], counted)


@claim(
    "memoryformer", "2411.12992",
    says="Tables in place of matrices leave hardly any operations but those of attention.",
    source="abstract: nearly all computations but the attention's are eliminated", evidence="cost",
    value="share of the operations outside attention that is left", at_most=0.1,
)  # fmt: skip
def memoryformer_operations() -> Found:
    """Operations of memoryformer_base on 2048 tokens, without head and attention, over the matrices of a transformer of
    its width, 12 dim^2 a block."""
    model = on_meta("memoryformer_base")
    c, length = model.config, 2048
    attention = c.depth * 2 * 2 * length * length * c.dim
    left = flops(model, tokens(length)) - attention - 2 * length * model.head.weight.numel()
    dense = c.depth * 2 * length * 12 * c.dim**2
    return Found(left / dense, {"left": left, "dense": dense, "attention": attention})


@claim(
    "mohd", "2412.05644", says="Half of the hidden channels answer for a token: half of the parameters are active.",
    source="abstract: 50 % fewer activated parameters", evidence="count",
    value="share of the blocks' parameters that is active",
    at_most=0.55,
)  # fmt: skip
def mohd_active() -> Found:
    """Parameters of the blocks of mohd_355m that a token uses, over those of its dense twin."""
    model = on_meta("mohd_355m")
    tables = 2 * model.embedding.weight.numel()
    used, dense = model.num_active_parameters() - tables, parameters(on_meta_dense(model)) - tables
    return Found(used / dense, {"active": used, "dense": dense})


def on_meta_dense(model: Any) -> Any:
    """A transformer of the same sizes."""
    c = model.config
    return on_meta(
        "transformer_130m", vocab_size=c.vocab_size, dim=c.dim, depth=c.depth, num_heads=c.num_heads,
        num_kv_heads=c.num_heads, mlp_dim=c.mlp_dim, tie_embeddings=False,
    )  # fmt: skip


@claim(
    "mole", "2503.23100", says="Experts that share a latent space have fewer parameters than those they replace.",
    source="abstract: large reductions of parameters and of computation", evidence="count",
    value="share of the parameters", at_most=0.8,
)  # fmt: skip
def mole_parameters() -> Found:
    """Parameters of mole_olmoe_1b_7b over those of olmoe_1b_7b."""
    counted = {name: parameters(on_meta(name)) for name in ("mole_olmoe_1b_7b", "olmoe_1b_7b")}
    return Found(counted["mole_olmoe_1b_7b"] / counted["olmoe_1b_7b"], counted)


@claim(
    "m3vit", "2210.14793",
    says="One task uses its experts alone, and takes 88 % fewer operations than models that run whole.",
    source="abstract: 88 % fewer FLOPs at inference", evidence="cost",
    value="share of the operations with all experts that one task takes", at_most=0.12,
)  # fmt: skip
def m3vit_operations() -> Found:
    """Operations of m3vit_small without its heads for one task, over those with every expert for every patch; the
    paper's comparison is with other networks."""
    model = on_meta("m3vit_small")
    every = on_meta("m3vit_small", top_k=model.config.num_experts)
    one, whole = (flops(m.forward_features, images(m), m.config.tasks[0]) for m in (model, every))
    return Found(one / whole, {"one task": one, "all experts": whole})


@claim(
    "titans_mac", "2501.00663", says="Attention within segments and a memory between them: linear in the length.",
    source="section 4.1", evidence="cost", value="exponent over the length", at_most=1.05,
)  # fmt: skip
def titans_mac_operations_over_length() -> Found:
    """Operations of titans_mac_nano with one block over 64 to 512 tokens."""
    model = on_meta("titans_mac_nano", depth=1)
    return growth(lambda n: read(model, n), (64, 128, 256, 512))


@claim(
    "convfirst", "2404.03617", says="Mixing neighbours before the map widens costs less than after.",
    source="section on ConvFirst: the spatial convolution is of the narrow map", evidence="cost",
    value="share of the operations of the block that widens first", at_most=0.75,
)  # fmt: skip
def convfirst_operations() -> Found:
    """Operations of a block of 64 channels, six times as wide inside, in groups of eight, on 64 pixels a side; and of
    MBConv. A pixel takes 72 C + 2 t C^2 products in place of 72 t C + 2 t C^2."""
    with torch.device("meta"):
        x, blocks = torch.empty(1, 64, 64, 64), [kind(64, 64, 6).eval() for kind in (ConvFirst, MBConv)]
    first, after = (flops(block, x) for block in blocks)
    return Found(first / after, {"before": first, "after": after})
