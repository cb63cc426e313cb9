"""Sizes that papers print: parameters, those a token uses, multiplications and additions of an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from zoo.benchmarks.claims.declare import Found, claim
from zoo.benchmarks.claims.tools import apart, flops, images, on_meta, parameters, published


def total(name: str) -> int:
    return parameters(on_meta(name))


def active(name: str) -> int:
    return on_meta(name).num_active_parameters()


def active_without_embedding(name: str) -> int:
    """A token looks up one row of the embedding."""
    model = on_meta(name)
    return model.num_active_parameters() - model.embedding.weight.numel()


def active_in_blocks(name: str) -> int:
    """Without embedding and head."""
    return active_without_embedding(name) - on_meta(name).head.weight.numel()


def macs(name: str) -> float:
    """Of convolutions and products of matrices, for one image."""
    model = on_meta(name)
    return flops(model, images(model)) / 2


counts = partial(published, what="Parameters", count=total)
operations = partial(published, what="Multiplications and additions for an image", count=macs)
SIZES = "The registered sizes have the published numbers of parameters."
ACTIVE = "A token uses a small share of the parameters: most belong to experts that it does not visit."

counts(
    "mamba_sizes", "mamba", "2312.00752", says=SIZES, source="sizes of the released checkpoints",
    figure={"mamba_130m": "130M", "mamba_370m": "370M", "mamba_790m": "790M", "mamba_1_4b": "1.4B",
    "mamba_2_8b": "2.8B"},
)  # fmt: skip
counts(
    "mamba2_sizes", "mamba2", "2405.21060", says=SIZES, source="sizes of the released checkpoints",
    figure={
        "mamba2_130m": "130M", "mamba2_370m": "370M", "mamba2_780m": "780M", "mamba2_1_3b": "1.3B",
        "mamba2_2_7b": "2.7B",
    },
)  # fmt: skip
counts(
    "falcon_h1_sizes", "falcon_h1", "2507.22448", says=SIZES, source="table of architectures",
    figure={"falcon_h1_0_5b": "0.52B", "falcon_h1_1_5b": "1.55B", "falcon_h1_3b": "3.15B", "falcon_h1_7b": "7.59B"},
)  # fmt: skip
counts(
    "rwkv7_sizes", "rwkv7", "2503.14456", says=SIZES, source="table of model sizes",
    figure={
        "rwkv7_0_1b": "191034624", "rwkv7_0_4b": "450767872", "rwkv7_1_5b": "1527404544", "rwkv7_2_9b": "2947735040",
    },
)  # fmt: skip
counts(
    "xlstm_sizes", "xlstm", "2503.13427", says=SIZES, source="section 3: 6.87 B parameters",
    figure={"xlstm_7b": "6.87B"},
)  # fmt: skip
counts(
    "xlstm1_sizes", "xlstm1", "2405.04517", says=SIZES, source="tables of language models: 1422.6 M and 1420.1 M",
    figure={"xlstm1_1_3b": "1422.6M", "xlstm1_7to1_1_3b": "1420.1M"},
)  # fmt: skip
counts(
    "lfm2_sizes", "lfm2", "2511.23404", says=SIZES, source="table of models",
    figure={"lfm2_350m": "350M", "lfm2_700m": "700M", "lfm2_1_2b": "1.2B", "lfm2_2_6b": "2.6B"},
)  # fmt: skip
counts(
    "bamba_size", "bamba", "2405.21060", says=SIZES, source="model card of ibm-ai-platform/Bamba-9B: 9.78 B",
    figure={"bamba_9b": "9.78B"},
)  # fmt: skip
counts(
    "nemotron_h_size", "nemotron_h", "2504.03624", says=SIZES, source="Nemotron-H-8B, 8.1 B parameters",
    figure={"nemotron_h_8b": "8.1B"},
)  # fmt: skip
counts(
    "zamba2_sizes", "zamba2", "2411.15242", says=SIZES, source="model cards of Zyphra/Zamba2",
    figure={"zamba2_1_2b": "1.2B", "zamba2_2_7b": "2.7B", "zamba2_7b": "7.4B"},
)  # fmt: skip
counts(
    "recurrent_gemma_size", "recurrent_gemma", "2404.07839", says=SIZES, source="table 1: 2.7 B with the embedding",
    figure={"recurrentgemma_2b": "2.7B"},
)  # fmt: skip
counts(
    "dense_sizes", "transformer", "2407.21783", says=SIZES, source="reports of the models, and their cards",
    figure={
        "llama3_8b": "8.03B", "llama3_70b": "70.6B", "llama3_2_1b": "1.23B", "llama3_2_3b": "3.21B",
        "mistral_7b_v0_1": "7.24B", "qwen2_5_7b": "7.61B", "smollm2_1_7b": "1.71B", "gemma2_9b": "9.24B",
    },
)  # fmt: skip
counts(
    "based_size", "based", "2402.18668", says=SIZES, source="section 6: models of 360 M and 1.3 B",
    figure={"based_360m": "360M", "based_1_3b": "1.3B"},
)  # fmt: skip
counts(
    "vim_sizes", "vim", "2401.09417", says=SIZES, source="table 1: 7 M, 26 M, 98 M",
    figure={"vim_tiny": "7M", "vim_small": "26M", "vim_base": "98M"},
)  # fmt: skip
counts(
    "vit_size", "vit", "2010.11929", says=SIZES, source="table 1: ViT-Base, 86 M",
    figure={"vit_base_patch16_224": "86M"},
)  # fmt: skip
counts(
    "shvit_sizes", "shvit", "2401.16456", says=SIZES, source="table 2",
    figure={"shvit_s1": "6.3M", "shvit_s2": "11.4M", "shvit_s3": "14.2M", "shvit_s4": "16.5M"},
)  # fmt: skip
operations(
    "shvit_operations", "shvit", "2401.16456", says="An image costs few operations.", source="table 2",
    figure={"shvit_s1": "241M", "shvit_s2": "366M", "shvit_s3": "601M", "shvit_s4": "986M"},
)  # fmt: skip
counts(
    "efficientvit_sizes", "efficientvit", "2305.07027", says=SIZES, source="table 2",
    figure={
        "efficientvit_m0": "2.3M", "efficientvit_m1": "3.0M", "efficientvit_m2": "4.2M", "efficientvit_m3": "6.9M",
        "efficientvit_m4": "8.8M", "efficientvit_m5": "12.4M",
    },
)  # fmt: skip
operations(
    "efficientvit_operations", "efficientvit", "2305.07027", says="An image costs few operations.", source="table 2",
    figure={
        "efficientvit_m0": "79M", "efficientvit_m1": "167M", "efficientvit_m2": "201M", "efficientvit_m3": "263M",
        "efficientvit_m4": "299M", "efficientvit_m5": "522M",
    },
)  # fmt: skip
counts(
    "vovnet_sizes", "vovnet", "1911.06667", says=SIZES, source="README of the authors' vovnet-detectron2",
    figure={
        "ese_vovnet19b": "11.2M", "ese_vovnet19b_dw": "6.5M", "ese_vovnet19b_slim": "3.1M",
        "ese_vovnet19b_slim_dw": "1.8M",
    },
)  # fmt: skip
counts(
    "mambavision_sizes", "mambavision", "2407.08083", says=SIZES, source="table 1",
    figure={
        "mambavision_t": "31.8M", "mambavision_t2": "35.1M", "mambavision_s": "50.1M", "mambavision_b": "97.7M",
        "mambavision_l": "227.9M", "mambavision_l2": "241.5M",
    },
)  # fmt: skip
counts(
    "vmamba_sizes", "vmamba", "2401.10166", says=SIZES, source="table 1: 30 M, 50 M, 89 M",
    figure={"vmamba_tiny_s1l8": "30M", "vmamba_small_s2l15": "50M", "vmamba_base_s2l15": "89M"},
)  # fmt: skip
counts(
    "mcunet_sizes", "mcunet", "2007.10319", says=SIZES, source="model zoo of mit-han-lab/mcunet",
    figure={
        "mcunet_in0": "0.75M", "mcunet_in1": "0.64M", "mcunet_in2": "0.73M", "mcunet_in3": "0.74M",
        "mcunet_in4": "1.73M", "mbv2_w035": "0.75M", "proxyless_w03": "0.75M",
    },
)  # fmt: skip
operations(
    "mcunet_operations", "mcunet", "2007.10319", says="An image costs few operations.",
    source="model zoo of mit-han-lab/mcunet",
    figure={
        "mcunet_in0": "6.4M", "mcunet_in1": "12.8M", "mcunet_in2": "67.3M", "mcunet_in3": "81.8M",
        "mcunet_in4": "125.9M", "mbv2_w035": "23.5M", "proxyless_w03": "38.3M",
    },
)  # fmt: skip
counts(
    "simplenet_sizes", "simplenet", "1608.06037", says=SIZES, source="abstract and table: 5.4 M and 310 K on CIFAR-10",
    figure={"simplenetv1_cifar_5m": "5.4M", "simplenetv1_cifar_310k": "310K"},
)  # fmt: skip
counts(
    "lightcnn_sizes", "lightcnn", "2501.15547", says=SIZES, source="abstract: 14,862 parameters on MNIST",
    figure={"lightcnn_mnist": "14862"},
)  # fmt: skip
counts(
    "pcdarts_sizes", "pcdarts", "1907.05737", says="The networks found have the published numbers of parameters.",
    source="tables 2 and 3: 3.6 M and 5.3 M", figure={"pcdarts_cifar": "3.6M", "pcdarts_imagenet": "5.3M"},
)  # fmt: skip
counts(
    "positional_size", "positional", "2410.01686", says=SIZES, source="the authors' repository: 84,577",
    figure={"positional_n8": "84577"},
)  # fmt: skip


def mixture(
    name: str, paper: str, source: str, total: Mapping[str, str], used: Mapping[str, str],
    count: Callable[[str], float] = active, family: str | None = None,
) -> None:  # fmt: skip
    """Declare two claims: all parameters are as many as printed, and so are those that a token uses."""
    families = family or name
    counts(f"{name}_sizes", families, paper, says=SIZES, source=source, figure=total)
    published(f"{name}_active", families, paper, "Parameters a token uses", count, used, says=ACTIVE, source=source)


mixture(
    "mixtral", "2401.04088", "section 1: 46.7 B and 12.9 B; model cards",
    {"mixtral_8x7b": "46.7B", "mixtral_8x22b": "141B"}, {"mixtral_8x7b": "12.9B", "mixtral_8x22b": "39B"}, family="moe",
)  # fmt: skip
mixture(
    "olmoe", "2409.02060", "section 2: 6.9 B and 1.3 B", {"olmoe_1b_7b": "6.9B"}, {"olmoe_1b_7b": "1.3B"}, family="moe"
)
mixture(
    "qwen3_moe", "2505.09388", "table 2 and model cards: 30.5 B and 3.3 B, 235 B and 22 B",
    {"qwen3_30b_a3b": "30.5B", "qwen3_235b_a22b": "235B"}, {"qwen3_30b_a3b": "3.3B", "qwen3_235b_a22b": "22B"},
    family="moe",
)  # fmt: skip
mixture(
    "deepseek", "2412.19437", "abstract: 671 B and 37 B; of V2: 236 B and 21 B, 15.7 B and 2.4 B",
    {"deepseek_v3_671b": "671B", "deepseek_v2_236b": "236B", "deepseek_v2_lite": "15.7B"},
    {"deepseek_v3_671b": "37B", "deepseek_v2_236b": "21B", "deepseek_v2_lite": "2.4B"}, active_without_embedding,
)  # fmt: skip
mixture(
    "gpt_oss", "2508.10925", "table 1: 20.91 B and 3.61 B, 116.83 B and 5.13 B, the embedding not among the latter",
    {"gpt_oss_20b": "20.91B", "gpt_oss_120b": "116.83B"}, {"gpt_oss_20b": "3.61B", "gpt_oss_120b": "5.13B"},
    active_without_embedding,
)  # fmt: skip
mixture(
    "minimax", "2501.08313", "abstract: 456 B and 45.9 B, embedding and head not among the latter",
    {"minimax_text_01": "456B"}, {"minimax_text_01": "45.9B"}, active_in_blocks,
)  # fmt: skip
mixture(
    "qwen3_next", "2412.06464", "model card of Qwen3-Next-80B-A3B: 80 B and 3 B",
    {"qwen3_next_80b_a3b": "80B"}, {"qwen3_next_80b_a3b": "3B"}, active_without_embedding,
)  # fmt: skip
mixture(
    "kimi_linear", "2510.26692", "abstract and model card: 48 B and 3 B",
    {"kimi_linear_48b_a3b": "48B"}, {"kimi_linear_48b_a3b": "3B"},
)  # fmt: skip
mixture(
    "smallthinker", "2507.20984", "title and table 1: 4 B and 0.6 B, 21 B and 3 B",
    {"smallthinker_4b_a0_6b": "4B", "smallthinker_21b_a3b": "21B"},
    {"smallthinker_4b_a0_6b": "0.6B", "smallthinker_21b_a3b": "3B"}, active_without_embedding,
)  # fmt: skip
mixture(
    "jamba", "2408.12570", "abstracts: 52 B and 12 B, 398 B and 94 B",
    {"jamba_v0_1": "52B", "jamba_large": "398B"}, {"jamba_v0_1": "12B", "jamba_large": "94B"},
)  # fmt: skip
mixture(
    "granite_hybrid", "2405.21060", "model cards of Granite 4.0: 7 B and 1 B, 32 B and 9 B",
    {"granite4_h_tiny": "7B", "granite4_h_small": "32B"}, {"granite4_h_tiny": "1B", "granite4_h_small": "9B"},
)  # fmt: skip


@claim(
    "pcdarts", "1907.05737", says="The network found on ImageNet costs 597 M multiplications and additions an image.",
    source="table 3", evidence="count", value="share by which the count differs from 597 M", at_most=0.01,
)  # fmt: skip
def pcdarts_operations() -> Found:
    """Those of convolutions and of the classifier, for an image of 224 pixels."""
    counted = macs("pcdarts_imagenet")
    return Found(abs(counted / 597e6 - 1), {"counted": counted, "units of the last digit": apart(counted, "597M")})


@claim(
    "elm", "2306.16922", says="A neuron of under ten thousand parameters predicts a cortical neuron's spikes.",
    source="abstract; its AUC of 0.99 on the NeuronIO data is out of reach here", evidence="count",
    value="parameters", at_most=10_000,
)  # fmt: skip
def elm_size() -> Found:
    """Parameters of the released model with 20 memories, one of those the paper draws at an AUC above 0.99."""
    return Found(total("elm_20"), {name: total(name) for name in ("elm_1", "elm_10", "elm_20", "elm_100")})
