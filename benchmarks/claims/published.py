"""What papers state for training at scale: out of reach here, and said so, with their figures."""

from __future__ import annotations

from functools import partial

from zoo.benchmarks.claims.declare import beyond

MAMBA = partial(beyond, paper="2312.00752")
PILE, IMAGENET = "It takes 300 billion tokens of the Pile.", "It takes 300 epochs of ImageNet."
ARENA = "It takes the Long Range Arena and days on a GPU."

MAMBA(
    "mamba_throughput", "mamba", says="Generation has five times the throughput of a transformer of the same size.",
    source="abstract and section 4.5: 5 times, 1.4 B beside 1.3 B on an A100", why="It takes an A100.",
)  # fmt: skip
MAMBA(
    "mamba_quality", "mamba", says="Mamba of 2.8 B is better than transformers of twice its size.",
    source="table 3: perplexity of 6.22 on the Pile, 63.3 % over seven tasks", why=PILE,
)  # fmt: skip
beyond(
    "s4_long_range", "s4 s4_text s4_pixel", "2111.00396",
    says="S4 solves Path-X, sequences of 16,384, and leads the arena.",
    source="abstract: best on every task; 91 % on sequential CIFAR-10", why=ARENA,
)  # fmt: skip
beyond(
    "longconv_path256", "longconv longconv_text longconv_pixel", "2302.06646",
    says="Long convolutions learn Path256, sequences of 65,536, 7.2 times as fast as the best before.",
    source="abstract: 29.1 points more", why=ARENA,
)  # fmt: skip
beyond(
    "seqboat_enwik8_quality", "seqboat", "2306.11197",
    says="SeqBoat models text with a fraction of its attention active.",
    source="the authors' repository: 1.0233 bits a character on enwik8", why="It takes 400 thousand steps on GPUs.",
)  # fmt: skip
beyond(
    "based_recall_at_scale", "based", "2402.18668",
    says="At 1.3 B BASED recalls better than Mamba, at 24 times the throughput.",
    source="abstract: 6.22 points on recall tasks, 24 times FlashAttention-2",
    why="It takes 10 billion tokens and an H100.",
)  # fmt: skip
beyond(
    "routing_quality", "routing", "2003.05997", says="Routed attention models text better than fixed sparse patterns.",
    source="abstract: 15.8 beside 18.3 on WikiText-103, 33.2 on PG-19", why="It takes the full corpora and TPUs.",
)  # fmt: skip
beyond(
    "scatterbrain_vision", "scatterbrain", "2110.15343",
    says="As a drop-in it saves 98 % of attention's memory at 1 % of accuracy.",
    source="abstract: T2T-ViT on ImageNet", why="It takes ImageNet and published weights.",
)  # fmt: skip
beyond(
    "mor_quality", "mor", "2507.10524", says="At equal training FLOPs MoR is better than a transformer twice its size.",
    source="table 3: 43.1 % few-shot with 167 M beside 42.3 % with 315 M", why="It takes 16.5e18 FLOPs of training.",
)  # fmt: skip
beyond(
    "mod_quality", "mod", "2404.02258",
    says="At equal FLOPs MoD reaches the loss of a dense model with steps 60 % faster.",
    source="abstract and section 4.1", why="It takes 6e18 FLOPs of training and more.",
)  # fmt: skip
beyond(
    "vim_accuracy", "vim", "2401.09417", says="Vim is more accurate than DeiT of its size.",
    source="table 1: 76.1, 80.5 and 81.9 % on ImageNet (README)", why=IMAGENET,
)  # fmt: skip
beyond(
    "vmamba_accuracy", "vmamba", "2401.10166", says="VMamba is more accurate than Swin of its cost.",
    source="table 1: 82.6, 83.6 and 83.9 % on ImageNet", why=IMAGENET,
)  # fmt: skip
beyond(
    "mambavision_accuracy", "mambavision", "2407.08083", says="MambaVision is on the front of accuracy and throughput.",
    source="table 1: 82.3 to 85.3 % on ImageNet", why=IMAGENET,
)  # fmt: skip
beyond(
    "shvit_accuracy", "shvit", "2401.16456", says="SHViT is more accurate than MobileViTv2 at several times its speed.",
    source="table 2: 72.8, 75.2, 77.4 and 79.4 % on ImageNet", why=IMAGENET,
)  # fmt: skip
beyond(
    "efficientvit_accuracy", "efficientvit", "2305.07027",
    says="EfficientViT is more accurate than MobileNetV3 and faster.",
    source="table 2: 63.2 to 77.1 % on ImageNet", why=IMAGENET,
)  # fmt: skip
beyond(
    "mcunet_accuracy", "mcunet", "2110.15352", says="A microcontroller reaches a record of accuracy on ImageNet.",
    source="abstract: 71.8 %, and 90 % on visual wake words within 32 kB", why=IMAGENET,
)  # fmt: skip
beyond(
    "pcdarts_accuracy", "pcdarts", "1907.05737",
    says="A search of 0.1 GPU days finds a network of 2.57 % error on CIFAR-10.",
    source="tables 2 and 3; 24.2 % top-1 error on ImageNet in 3.8 GPU days",
    why="It takes 600 epochs of CIFAR-10 on a GPU.",
)  # fmt: skip
beyond(
    "titans_needles", "titans_mac titans_mag titans_mal titans_lmm", "2501.00663",
    says="Titans find needles in more than two million tokens.", source="abstract",
    why="It takes training at scale on long documents.",
)  # fmt: skip
beyond(
    "lizard_quality", "lizard", "2507.09025", says="A linearised Llama 3 8B keeps most of its MMLU.",
    source="table 1: 61.2 % beside 66.6 %", why="It takes the weights of 8 B and 40 million tokens.",
)  # fmt: skip
beyond(
    "deepseek_throughput", "deepseek", "2405.04434", says="V2 generates 5.76 times as fast as DeepSeek 67B.",
    source="abstract; 42.5 % cheaper training", why="It takes eight H800.",
)  # fmt: skip
beyond(
    "smallthinker_speed", "smallthinker", "2507.20984",
    says="Both models say over 20 tokens a second on consumer CPUs.",
    source="abstract, with weights of 4 bits; 1 GB and 8 GB of memory",
    why="It takes the published weights and their engine.",
)  # fmt: skip
beyond(
    "elm_accuracy", "elm", "2306.16922", says="ELM neurons predict a cortical neuron's spikes nearly perfectly.",
    source="section 4.1: AUC above 0.99 on NeuronIO", why="It takes the NeuronIO data.",
)  # fmt: skip
