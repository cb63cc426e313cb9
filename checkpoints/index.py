"""Which published weights exist: for every name and tag where they lie, what they are, and what is known of the files.

Names of repositories and files are those of the projects' own pages; none could be asked when this was written, so
revisions, sizes and most hashes are None: the first download records a file's sha256, and later ones are compared with
it (``download``). The first tag of a name is the one ``pretrained=True`` takes.

Compared with stored copies of the Hub's pages, the authors' code and others' lists of counts (2026-11): repositories,
licences and sizes of RWKV-7, Jamba 1.5, Zamba2 1.2B, Granite 4 and MambaVision, and the parameters of some 18 of the
37 dense models. From memory, but for what transformers or the authors' code says: licences of Nemotron-H, Bamba, the
larger Zamba2, Falcon-H1, LFM2, Qwen3-Next and Qwen3.5, and the configurations of Nemotron-H and Qwen3.5.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from zoo.checkpoints.io import SINGLE

UNKNOWN = "unknown"  # licence: the pages say none


@dataclass(frozen=True)
class Weights:
    """A published set of weights.

    repo: repository on the Hugging Face Hub, or url: address of a file. file: the file in the repository; None for
    what a folder of weights holds (model.safetensors, its shards, or pytorch_model.bin). revision: commit of the
    repository. sha256, or sha256_prefix (as release files carry it in their names), and size in bytes of the file.
    licence, as the repository's or project's page names it; data (trained on), metric (published), tokenizer
    (repository). fields: of the configuration, where the weights differ from the name's defaults and from the
    config.json beside them. converter: of ``checkpoints.convert``, for what is not in the zoo's names. ema: of a
    PyTorch file, True where the metric is that of the averaged copy.

    Raises:
        ValueError: for neither or both of repo and url, or a file name that leaves the repository.
    """

    repo: str | None = None
    url: str | None = None
    file: str | None = None
    revision: str | None = None
    sha256: str | None = None
    sha256_prefix: str | None = None
    size: int | None = None
    licence: str = UNKNOWN
    data: str | None = None
    metric: str | None = None
    tokenizer: str | None = None
    converter: str | None = None
    ema: bool | None = None
    fields: tuple[tuple[str, object], ...] = ()

    def __post_init__(self):
        if (self.repo is None) == (self.url is None):
            raise ValueError(f"weights have a repo or a url, got repo {self.repo!r} and url {self.url!r}")
        check_inside(self.file or "")

    @property
    def in_layout(self) -> bool:
        """Whether the file is one that libraries write beside a config.json, which decides what the tensors mean; a
        file of the authors' own, or of an address, is described by the model's name and ``fields``."""
        return self.repo is not None and self.file in (None, *SINGLE)

    @property
    def tokenizer_place(self) -> tuple[str, str | None] | None:
        """Repository and revision of the tokenizer: its own, or that of the weights."""
        repo = self.tokenizer or self.repo
        return None if repo is None else (repo, self.revision if repo == self.repo else None)


def check_inside(name: str) -> None:
    """Raise a ValueError for a file name that is absolute or leads out of its folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in name:
        raise ValueError(f"{name!r} leads out of its folder; nothing was read: names in an index are relative")


_NEOX = "EleutherAI/gpt-neox-20b"
_MAMBA = Weights(repo="", licence="apache-2.0", data="the Pile, 300 B tokens", tokenizer=_NEOX, converter="mamba")
_FALCON = Weights(repo="", licence="falcon-llm-license", converter="falcon_h1")
# the World models' tokenizer is Python code beside a list of words, without a tokenizer.json; the Pile's is NeoX's
_RWKV = Weights(repo="", licence="apache-2.0", converter="rwkv7")
_NEMOTRON = "nvidia-internal-scientific-research-and-development-model-license"
_DEEPSEEK = Weights(repo="", licence="deepseek (model agreement)", converter="deepseek")
_IMAGENET, _IMAGENET_21K = "ImageNet-1k", "ImageNet-21k, then ImageNet-1k"
_MAMBAVISION = "cc-by-nc-sa-4.0 (README of the authors' code; nvclv1 on the Hub)"
# MambaVision's for images of 512 pixels
_WIDE = (("img_size", 512), ("windows", (0, 0, 32, 16)), ("crop_pct", 0.93), ("crop_mode", "squash"))

INDEX: dict[str, dict[str, Weights]] = {}


def _add(name: str, tag: str, weights: Weights) -> None:
    INDEX.setdefault(name, {})[tag] = weights


for _size, _published in (
    ("130m", "130m"), ("370m", "370m"), ("790m", "790m"), ("1_4b", "1.4b"), ("2_8b", "2.8b"),
):  # fmt: skip
    _repo = f"state-spaces/mamba-{_published}"
    _add(f"mamba_{_size}", "pile", replace(_MAMBA, repo=f"{_repo}-hf", tokenizer=f"{_repo}-hf"))
    _add(f"mamba_{_size}", "pile_original", replace(_MAMBA, repo=_repo, file="pytorch_model.bin"))
_add(
    "mamba_2_8b", "slimpj",
    replace(_MAMBA, repo="state-spaces/mamba-2.8b-slimpj", file="pytorch_model.bin", data="SlimPajama, 600 B tokens"),
)  # fmt: skip
for _size, _published in (
    ("130m", "130m"), ("370m", "370m"), ("780m", "780m"), ("1_3b", "1.3b"), ("2_7b", "2.7b"),
):  # fmt: skip
    _add(f"mamba2_{_size}", "pile", replace(_MAMBA, repo=f"state-spaces/mamba2-{_published}", file="pytorch_model.bin"))
_add("mamba2attn_2_7b", "pile", replace(_MAMBA, repo="state-spaces/mamba2attn-2.7b", file="pytorch_model.bin"))
for _size, _published in (
    ("tiny_90m", "Tiny-90M"), ("0_5b", "0.5B"), ("1_5b", "1.5B"), ("1_5b_deep", "1.5B-Deep"), ("3b", "3B"),
    ("7b", "7B"), ("34b", "34B"),
):  # fmt: skip
    for _tag, _kind in (("base", "Base"), ("instruct", "Instruct")):
        _repo = f"tiiuae/Falcon-H1-{_published}-{_kind}"
        _add(f"falcon_h1_{_size}", _tag, replace(_FALCON, repo=_repo, tokenizer=_repo))
for _size, _published in (("2b", "2b"), ("9b", "9b")):
    for _tag, _kind in (("base", ""), ("instruct", "-it")):
        _repo = f"google/recurrentgemma-{_published}{_kind}"
        _griffin = Weights(repo=_repo, licence="gemma", tokenizer=_repo, converter="recurrent_gemma")
        _add(f"recurrentgemma_{_size}", _tag, _griffin)
for _size, _published in (("350m", "350M"), ("700m", "700M"), ("1_2b", "1.2B"), ("2_6b", "2.6B")):
    _repo = f"LiquidAI/LFM2-{_published}"
    _add(f"lfm2_{_size}", "instruct", Weights(repo=_repo, licence="lfm1.0", tokenizer=_repo, converter="lfm2"))
for _name, _tag, _repo in (
    ("qwen3_next_80b_a3b", "instruct", "Qwen/Qwen3-Next-80B-A3B-Instruct"),
    ("qwen3_next_80b_a3b", "thinking", "Qwen/Qwen3-Next-80B-A3B-Thinking"),
    ("qwen3_5_9b", "instruct", "Qwen/Qwen3.5-9B"), ("qwen3_5_35b_a3b", "instruct", "Qwen/Qwen3.5-35B-A3B"),
):  # fmt: skip
    _add(_name, _tag, Weights(repo=_repo, licence="apache-2.0", tokenizer=_repo, converter="qwen3_next"))
for _tag, _kind in (("instruct", "Instruct"), ("base", "Base")):  # of a tiktoken.model, without a tokenizer.json
    _repo = f"moonshotai/Kimi-Linear-48B-A3B-{_kind}"
    _add("kimi_linear_48b_a3b", _tag, Weights(repo=_repo, licence="mit", tokenizer=_repo, converter="kimi_linear"))
for _tag, _kind in (("base", ""), ("instruct", "-instruct")):
    _repo = f"tiiuae/falcon-mamba-7b{_kind}"
    _falcon_mamba = Weights(repo=_repo, licence="falcon-mamba-7b-license", tokenizer=_repo, converter="mamba")
    _add("falcon_mamba_7b", _tag, _falcon_mamba)
for _name, _tag, _repo, _licence, _converter in (
    ("jamba_v0_1", "base", "ai21labs/Jamba-v0.1", "apache-2.0", "jamba"),
    ("jamba_mini", "instruct", "ai21labs/AI21-Jamba-Mini-1.5", "jamba-open-model-license", "jamba"),
    ("jamba_large", "instruct", "ai21labs/AI21-Jamba-Large-1.5", "jamba-open-model-license", "jamba"),
    ("jamba_reasoning_3b", "instruct", "ai21labs/AI21-Jamba-Reasoning-3B", "apache-2.0", "jamba"),
    ("bamba_9b", "base", "ibm-fms/Bamba-9B", "apache-2.0", "bamba"),
    ("granite4_h_micro", "base", "ibm-granite/granite-4.0-h-micro-base", "apache-2.0", "granite_hybrid"),
    ("granite4_h_micro", "instruct", "ibm-granite/granite-4.0-h-micro", "apache-2.0", "granite_hybrid"),
    ("granite4_h_tiny", "base", "ibm-granite/granite-4.0-h-tiny-base", "apache-2.0", "granite_hybrid"),
    ("granite4_h_tiny", "instruct", "ibm-granite/granite-4.0-h-tiny", "apache-2.0", "granite_hybrid"),
    ("granite4_h_small", "base", "ibm-granite/granite-4.0-h-small-base", "apache-2.0", "granite_hybrid"),
    ("granite4_h_small", "instruct", "ibm-granite/granite-4.0-h-small", "apache-2.0", "granite_hybrid"),
    ("nemotron_h_4b", "base", "nvidia/Nemotron-H-4B-Base-8K", _NEMOTRON, "nemotron_h"),
    ("nemotron_h_8b", "base", "nvidia/Nemotron-H-8B-Base-8K", _NEMOTRON, "nemotron_h"),
    ("zamba2_1_2b", "base", "Zyphra/Zamba2-1.2B", "apache-2.0", "zamba2"),
    ("zamba2_2_7b", "base", "Zyphra/Zamba2-2.7B", "apache-2.0", "zamba2"),
    ("zamba2_7b", "base", "Zyphra/Zamba2-7B", "apache-2.0", "zamba2"),
):  # fmt: skip
    _add(_name, _tag, Weights(repo=_repo, licence=_licence, tokenizer=_repo, converter=_converter))
_repo = "NX-AI/xLSTM-7b"
_xlstm = Weights(repo=_repo, licence="nxai-community (see its page)", tokenizer=_repo, converter="xlstm")
_add("xlstm_7b", "base", _xlstm)
for _name, _tag, _repo in (
    ("deepseek_v2_lite", "base", "DeepSeek-V2-Lite"), ("deepseek_v2_lite", "chat", "DeepSeek-V2-Lite-Chat"),
    ("deepseek_v2_236b", "base", "DeepSeek-V2"), ("deepseek_v2_236b", "chat", "DeepSeek-V2-Chat"),
    ("deepseek_v3_671b", "base", "DeepSeek-V3"),
):  # fmt: skip
    _add(_name, _tag, replace(_DEEPSEEK, repo=f"deepseek-ai/{_repo}", tokenizer=f"deepseek-ai/{_repo}"))
for _size, _published, _fla in (
    ("0_1b", "World2.8-0.1B", "191M"), ("0_4b", "World2.9-0.4B", "0.4B"), ("1_5b", "World3-1.5B", "1.5B"),
    ("2_9b", "World3-2.9B", "2.9B"),
):  # fmt: skip
    _repo = f"RWKV/RWKV7-Goose-{_published}-HF"
    _add(f"rwkv7_{_size}", "world", replace(_RWKV, repo=_repo, tokenizer=_repo))
    _repo = f"fla-hub/rwkv7-{_fla}-world"  # which those of RWKV are copies of
    _add(f"rwkv7_{_size}", "world_fla", replace(_RWKV, repo=_repo, tokenizer=_repo))
for _size, _published in (("0_1b", "168M"), ("0_4b", "421M"), ("1_5b", "1.47B")):  # of a smaller vocabulary
    _repo = f"RWKV/RWKV7-Goose-Pile-{_published}-HF"
    _add(f"rwkv7_{_size}", "pile", replace(_RWKV, repo=_repo, tokenizer=_repo, data="the Pile"))
for _size in ("8x7B", "8x22B"):
    for _tag, _kind in (("base", ""), ("instruct", "-Instruct")):
        _repo = f"mistralai/Mixtral-{_size}{_kind}-v0.1"
        _mixtral = Weights(repo=_repo, licence="apache-2.0", tokenizer=_repo, converter="mixtral")
        _add(f"mixtral_{_size.lower()}", _tag, _mixtral)
for _name, _licence, _base, _tuned in (
    ("llama2_7b", "llama2", "meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-chat-hf"),
    ("llama2_13b", "llama2", "meta-llama/Llama-2-13b-hf", "meta-llama/Llama-2-13b-chat-hf"),
    ("llama2_70b", "llama2", "meta-llama/Llama-2-70b-hf", "meta-llama/Llama-2-70b-chat-hf"),
    ("llama3_8b", "llama3", "meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B-Instruct"),
    ("llama3_70b", "llama3", "meta-llama/Meta-Llama-3-70B", "meta-llama/Meta-Llama-3-70B-Instruct"),
    ("llama3_1_8b", "llama3.1", "meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct"),
    ("llama3_1_70b", "llama3.1", "meta-llama/Llama-3.1-70B", "meta-llama/Llama-3.1-70B-Instruct"),
    ("llama3_2_1b", "llama3.2", "meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B-Instruct"),
    ("llama3_2_3b", "llama3.2", "meta-llama/Llama-3.2-3B", "meta-llama/Llama-3.2-3B-Instruct"),
    ("mistral_7b_v0_1", "apache-2.0", "mistralai/Mistral-7B-v0.1", "mistralai/Mistral-7B-Instruct-v0.1"),
    ("mistral_7b_v0_2", "apache-2.0", None, "mistralai/Mistral-7B-Instruct-v0.2"),
    ("mistral_7b_v0_3", "apache-2.0", "mistralai/Mistral-7B-v0.3", "mistralai/Mistral-7B-Instruct-v0.3"),
    ("qwen2_5_0_5b", "apache-2.0", "Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B-Instruct"),
    ("qwen2_5_1_5b", "apache-2.0", "Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-1.5B-Instruct"),
    ("qwen2_5_3b", "qwen-research", "Qwen/Qwen2.5-3B", "Qwen/Qwen2.5-3B-Instruct"),
    ("qwen2_5_7b", "apache-2.0", "Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B-Instruct"),
    ("qwen2_5_14b", "apache-2.0", "Qwen/Qwen2.5-14B", "Qwen/Qwen2.5-14B-Instruct"),
    ("qwen2_5_32b", "apache-2.0", "Qwen/Qwen2.5-32B", "Qwen/Qwen2.5-32B-Instruct"),
    ("qwen3_0_6b", "apache-2.0", "Qwen/Qwen3-0.6B-Base", "Qwen/Qwen3-0.6B"),
    ("qwen3_1_7b", "apache-2.0", "Qwen/Qwen3-1.7B-Base", "Qwen/Qwen3-1.7B"),
    ("qwen3_4b", "apache-2.0", "Qwen/Qwen3-4B-Base", "Qwen/Qwen3-4B"),
    ("qwen3_8b", "apache-2.0", "Qwen/Qwen3-8B-Base", "Qwen/Qwen3-8B"),
    ("qwen3_14b", "apache-2.0", "Qwen/Qwen3-14B-Base", "Qwen/Qwen3-14B"),
    ("qwen3_32b", "apache-2.0", None, "Qwen/Qwen3-32B"),
    ("smollm2_135m", "apache-2.0", "HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M-Instruct"),
    ("smollm2_360m", "apache-2.0", "HuggingFaceTB/SmolLM2-360M", "HuggingFaceTB/SmolLM2-360M-Instruct"),
    ("smollm2_1_7b", "apache-2.0", "HuggingFaceTB/SmolLM2-1.7B", "HuggingFaceTB/SmolLM2-1.7B-Instruct"),
    ("smollm3_3b", "apache-2.0", "HuggingFaceTB/SmolLM3-3B-Base", "HuggingFaceTB/SmolLM3-3B"),
    ("olmo2_1b", "apache-2.0", "allenai/OLMo-2-0425-1B", "allenai/OLMo-2-0425-1B-Instruct"),
    ("olmo2_7b", "apache-2.0", "allenai/OLMo-2-1124-7B", "allenai/OLMo-2-1124-7B-Instruct"),
    ("olmo2_13b", "apache-2.0", "allenai/OLMo-2-1124-13B", "allenai/OLMo-2-1124-13B-Instruct"),
    ("olmo2_32b", "apache-2.0", "allenai/OLMo-2-0325-32B", "allenai/OLMo-2-0325-32B-Instruct"),
    ("gemma2_2b", "gemma", "google/gemma-2-2b", "google/gemma-2-2b-it"),
    ("gemma2_9b", "gemma", "google/gemma-2-9b", "google/gemma-2-9b-it"),
    ("gemma2_27b", "gemma", "google/gemma-2-27b", "google/gemma-2-27b-it"),
    ("gemma3_270m", "gemma", "google/gemma-3-270m", "google/gemma-3-270m-it"),
    ("gemma3_1b", "gemma", "google/gemma-3-1b-pt", "google/gemma-3-1b-it"),
):
    for _tag, _repo in (("base", _base), ("instruct", _tuned)):
        if _repo is not None:
            _add(_name, _tag, Weights(repo=_repo, licence=_licence, tokenizer=_repo, converter="dense"))
for _name, _tag, _repo in (
    ("olmoe_1b_7b", "base", "allenai/OLMoE-1B-7B-0924"),
    ("olmoe_1b_7b", "instruct", "allenai/OLMoE-1B-7B-0924-Instruct"),
    ("qwen3_30b_a3b", "chat", "Qwen/Qwen3-30B-A3B"), ("qwen3_30b_a3b", "base", "Qwen/Qwen3-30B-A3B-Base"),
    ("qwen3_235b_a22b", "chat", "Qwen/Qwen3-235B-A22B"),
):  # fmt: skip
    _add(_name, _tag, Weights(repo=_repo, licence="apache-2.0", tokenizer=_repo, converter="mixtral"))
for _size in ("20b", "120b"):
    _repo = f"openai/gpt-oss-{_size}"
    _add(f"gpt_oss_{_size}", "chat", Weights(repo=_repo, licence="apache-2.0", tokenizer=_repo, converter="gpt_oss"))
for _tag, _repo, _licence in (
    ("chat", "MiniMaxAI/MiniMax-Text-01", "minimax (model agreement)"),
    ("m1_40k", "MiniMaxAI/MiniMax-M1-40k", "apache-2.0"), ("m1_80k", "MiniMaxAI/MiniMax-M1-80k", "apache-2.0"),
):  # fmt: skip
    _add("minimax_text_01", _tag, Weights(repo=_repo, licence=_licence, tokenizer=_repo, converter="minimax"))
for _name, _published, _count, _licence in (
    ("deltanet_1_3b", "delta_net-1.3B-100B", 100, UNKNOWN), ("gla_1_3b", "gla-1.3B-100B", 100, "mit"),
    ("retnet_1_3b", "retnet-1.3B-100B", 100, "mit"), ("retnet_2_7b", "retnet-2.7B-100B", 100, "mit"),
    ("gla_340m", "gla-340M-15B", 15, UNKNOWN),
):  # fmt: skip
    _repo, _data = f"fla-hub/{_published}", f"SlimPajama, {_count} B tokens"
    _add(_name, "slimpj", Weights(repo=_repo, licence=_licence, data=_data, tokenizer=_repo, converter="fla"))
for _name, _repo in (
    ("based_360m", "hazyresearch/based-360m"), ("based_1_3b", "hazyresearch/based-1b"),
    ("based_attention_360m", "hazyresearch/attn-360m"), ("based_attention_1_3b", "hazyresearch/attn-1b"),
    ("based_mamba_360m", "hazyresearch/mamba-360m"), ("based_mamba_1_3b", "hazyresearch/mamba-1b"),
):  # fmt: skip
    _add(
        _name, "pile",
        Weights(repo=_repo, data="the Pile", tokenizer="gpt2", converter="based"),
    )  # fmt: skip
for _name, _repo, _file, _top1 in (
    ("vim_tiny", "hustvl/Vim-tiny-midclstok", "vim_t_midclstok_76p1acc.pth", "76.1"),
    ("vim_small", "hustvl/Vim-small-midclstok", "vim_s_midclstok_80p5acc.pth", "80.5"),
    ("vim_base", "hustvl/Vim-base-midclstok", "vim_b_midclstok_81p9acc.pth", "81.9"),
):
    _vim = Weights(repo=_repo, file=_file, licence="apache-2.0", data=_IMAGENET, metric=f"{_top1} % top-1")
    _add(_name, "in1k", _vim)
    if _finer := {
        "vim_tiny": ("vim_t_midclstok_ft_78p3acc.pth", "78.3"),
        "vim_small": ("vim_s_midclstok_ft_81p6acc.pth", "81.6"),
    }.get(_name):
        _add(
            _name, "in1k_stride8",
            replace(_vim, file=_finer[0], metric=f"{_finer[1]} % top-1", fields=(("stride", 8),)),
        )  # fmt: skip
for _name, _tag, _data, _converter in (
    *((f"efficientvit_m{i}", "r224_in1k", _IMAGENET, "efficientvit") for i in range(6)),
    *((f"shvit_s{i}", "in1k", _IMAGENET, "efficientvit") for i in range(1, 5)),
    ("ese_vovnet19b_dw", "ra_in1k", _IMAGENET, "vovnet"),
    ("ese_vovnet39b", "ra_in1k", _IMAGENET, "vovnet"),
    ("ese_vovnet57b", "ra4_e3600_r256_in1k", _IMAGENET, "vovnet"),
    *((f"vit_{size}_patch16_224", "augreg_in21k_ft_in1k", _IMAGENET_21K, None) for size in ("tiny", "small", "base")),
    *((f"vit_{size}_patch16_224", "augreg_in1k", _IMAGENET, None) for size in ("small", "base")),
):
    _licence = "mit" if _converter == "efficientvit" else "apache-2.0"
    _add(
        _name, _tag,
        Weights(
            repo=f"timm/{_name}.{_tag}", file="model.safetensors", licence=_licence, data=_data, converter=_converter
        ),
    )  # fmt: skip
for _name, _prefix, _top1 in (
    ("small_m1_05", "be804903", "61.122"), ("small_m2_05", "ca4b3e2b", "61.67"),
    ("small_m1_075", "098acbff", "67.784"), ("small_m2_075", "609ff4da", "68.506"),
    ("5m_m1", "36c4ca4d", "71.548"), ("5m_m2", "9bd6bb36", "72.03"),
    ("9m_m1", "524f9972", "73.792"), ("9m_m2", "59e8733b", "74.23"),
):  # fmt: skip
    _add(
        f"simplenetv1_{_name}", "in1k",
        Weights(
            url="https://github.com/Coderx7/SimpleNet_Pytorch/releases/download/v1.0.0/"
            f"simplenetv1_{_name}-{_prefix}.pth",
            sha256_prefix=_prefix, licence="mit", data=_IMAGENET, metric=f"{_top1} % top-1", converter="simplenet",
        ),
    )  # fmt: skip
for _name, _file, _metric in (
    ("mcunet_in0", "mcunet-10fps_imagenet", "41.5 % top-1"), ("mcunet_in1", "mcunet-5fps_imagenet", "51.5 % top-1"),
    ("mcunet_in2", "mcunet-256kb-1mb_imagenet", "60.9 % top-1"),
    ("mcunet_in3", "mcunet-320kb-1mb_imagenet", "62.2 % top-1"),
    ("mcunet_in4", "mcunet-512kb-2mb_imagenet", "68.4 % top-1"),
    ("mbv2_w035", "mbv2-w0.35-r144_imagenet", "49.7 % top-1"),
    ("proxyless_w03", "proxyless-w0.3-r176_imagenet", "57.0 % top-1"),
    ("mcunet_vww0", "mcunet-10fps_vww", "87.4 %"), ("mcunet_vww1", "mcunet-5fps_vww", "88.9 %"),
    ("mcunet_vww2", "mcunet-320kb-1mb_vww", "91.7 %"),
):  # fmt: skip
    _wake = _file.endswith("vww")
    _add(
        _name, "vww" if _wake else "in1k",
        Weights(
            url=f"https://hanlab18.mit.edu/projects/tinyml/mcunet/release/{_file}.pth", licence="mit",
            data="Visual Wake Words" if _wake else _IMAGENET, metric=_metric, converter="mcunet",
        ),
    )  # fmt: skip
for _name, _file, _top1 in (
    ("vovnet39a", "1lnzsgnixd8gjra/vovnet39_torchvision.pth", "76.77"),
    ("vovnet57a", "6bfu9gstbwfw31m/vovnet57_torchvision.pth", "77.73"),
):
    _add(
        _name, "in1k",
        Weights(
            url=f"https://dl.dropbox.com/s/{_file}?dl=1", data=_IMAGENET, metric=f"{_top1} % top-1", converter="vovnet",
            fields=(("residual", True),),
        ),
    )  # fmt: skip
for _name, _repo, _file, _options, _top1 in (
    ("t", "T-1K", "tiny_1k", (), "82.3"), ("t2", "T2-1K", "tiny2_1k", (), "82.7"),
    ("s", "S-1K", "small_1k", (), "83.3"), ("b", "B-1K", "base_1k", (), "84.2"), ("b", "B-21K", "base_21k", (), "84.9"),
    ("l", "L-1K", "large_1k", (), "85.0"), ("l", "L-21K", "large_21k", (), "86.1"),
    ("l2", "L2-1K", "large2_1k", (), "85.3"),
    ("l2", "L2-512-21K", "L2_21k_240m_512", _WIDE, "87.3"), ("l3", "L3-256-21K", "L3_21k_740m_256", (), "87.3"),
    ("l3", "L3-512-21K", "L3_21k_740m_512", _WIDE, "88.1"),
):  # fmt: skip
    _larger = _repo.endswith("21K")
    _add(
        f"mambavision_{_name}", ("in21k_ft_in1k" if _larger else "in1k") + ("_512" if _options else ""),
        Weights(
            repo=f"nvidia/MambaVision-{_repo}", file=f"mambavision_{_file}.pth.tar", licence=_MAMBAVISION,
            data=_IMAGENET_21K if _larger else _IMAGENET, metric=f"{_top1} % top-1", converter="mambavision",
            fields=_options,
        ),
    )  # fmt: skip
for _name, _file, _top1 in (  # averaged but for the first, as the authors say (README.md, assets/performance.md)
    ("vanilla_vmamba_tiny", "v0cls/vssmtiny_dp01_ckpt_epoch_292", "82.2"),
    ("vanilla_vmamba_small", "v0cls/vssmsmall_dp03_ckpt_epoch_238", "83.5"),
    ("vanilla_vmamba_base", "v0cls/vssmbase_dp06_ckpt_epoch_241", "83.7"),
    ("vmamba_tiny_s2l5", "v2cls/vssm_tiny_0230_ckpt_epoch_262", "82.5"),
    ("vmamba_small_s2l15", "v2cls/vssm_small_0229_ckpt_epoch_222", "83.6"),
    ("vmamba_base_s2l15", "v2cls/vssm_base_0229_ckpt_epoch_237", "83.9"),
    ("vmamba_tiny_s1l8", "v2cls/vssm1_tiny_0230s_ckpt_epoch_264", "82.6"),
    ("vmamba_small_s1l20", "v2cls/vssm1_small_0229s_ckpt_epoch_240", "83.3"),
    ("vmamba_base_s1l20", "v2cls/vssm1_base_0229s_ckpt_epoch_225", "83.8"),
):
    _add(
        _name, "in1k",
        Weights(
            url=f"https://github.com/MzeroMiko/VMamba/releases/download/%23{_file}.pth", licence="mit", data=_IMAGENET,
            metric=f"{_top1} % top-1", converter="vmamba", ema=None if _name == "vanilla_vmamba_tiny" else True,
        ),
    )  # fmt: skip


_ELM = "https://raw.githubusercontent.com/AaronSpieler/elmneuron/52e68a6d39523ac6613a586699b116e8e606dda3/models"
for _dim, _tag, _folder, _auc, _size, _prefix, _options in (
    (1, "neuronio", "num_memory_1", "0.9437", 80_260, "2fde82f06143fee9", ()),
    (2, "neuronio", "num_memory_2", "0.9582", 80_644, "f484d08371267a87", ()),
    (3, "neuronio", "num_memory_3", "0.9558", 81_092, "af629ea0bc064c90", ()),
    (5, "neuronio", "num_memory_5", "0.9757", 82_116, "db39914f78fd96d5", ()),
    (7, "neuronio", "num_memory_7", "0.9827", 83_204, "a77898efabc57ad3", ()),
    (10, "neuronio", "num_memory_10", "0.9878", 85_188, "31fe64fc597d990d", ()),
    (15, "neuronio", "num_memory_15", "0.9915", 89_028, "c97111e4ab732adc", ()),
    (20, "neuronio", "num_memory_20", "0.9922", 93_828, "d5860dd60cb67997", ()),
    (25, "neuronio", "num_memory_25", "0.9926", 99_396, "51fcb04f20302d96", ()),
    (30, "neuronio", "num_memory_30", "0.9929", 105_604, "90e81b6a970f536d", ()),
    (40, "neuronio", "num_memory_40", "0.9934", 120_644, "25a34b7863c4738b", ()),
    (50, "neuronio", "num_memory_50", "0.9934", 139_012, "30ef79c024a7ddee", ()),
    (75, "neuronio", "num_memory_75", "0.9938", 198_532, "ea17dc3ecbe248fe", ()),
    (100, "neuronio", "num_memory_100", "0.9935", 278_148, "444dd697c7f0f9ea", ()),
    (100, "neuronio_best", "best_elm_neuron", "0.9946", 278_148, "ee1252616cd2ad7d", (("activation", "silu"),)),
):  # fmt: skip
    _add(
        f"elm_{_dim}", _tag,
        Weights(
            url=f"{_ELM}/{_folder}/neuronio_best_model_state.pt", licence="mit", data="NeuronIO", metric=f"AUC {_auc}",
            converter="elm", sha256_prefix=_prefix, size=_size, fields=_options,
        ),
    )  # fmt: skip


def tags(name: str) -> tuple[str, ...]:
    """The tags of a name's published weights, the default first."""
    return tuple(INDEX.get(name, ()))
