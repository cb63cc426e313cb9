"""The same model in other libraries, with the same weights: what ``zoo bench NAME --against PEER`` stands beside.

A side runs a forward pass, a training step, and continues prompts; its results are compared before it is timed.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import zoo
from zoo.generate.decode import steps
from zoo.generate.options import checked
from zoo.generate.prompts import batched
from zoo.profile.peaks import wait
from zoo.profile.sample import answer

LIKELIEST = 10
# peer -> the package that it is
PACKAGES = {
    "timm": "timm", "transformers": "transformers", "mamba_ssm": "mamba_ssm", "fla": "fla", "llama_cpp": "xllamacpp",
}  # fmt: skip


class Side:
    """A model of the zoo; peers differ in how they are called."""

    def __init__(self, model: Any):
        self.model = model

    def __call__(self, x: Tensor) -> Tensor:
        """What the model answers to a batch."""
        return answer(self.model, x)

    def loss(self, x: Tensor) -> Tensor:
        """That of the next tokens, without side losses, which peers leave out; of other models a mean square, which
        costs as much as a loss of labels."""
        if x.is_floating_point() or hasattr(self.model.config, "num_classes"):
            return self(x).float().square().mean()
        return self.model(x, labels=x)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """A pass without gradients."""
        return self(x)

    def training(self, x: Tensor) -> Tensor:
        """Loss and gradients, in eval mode: without dropout and the statistics of a batch; returns the loss."""
        self.model.zero_grad(set_to_none=True)
        found = self.loss(x)
        found.backward()
        return found.detach()

    def generate(self, x: Tensor, count: int) -> Any:
        """Continue the prompts by the likeliest tokens."""
        return zoo.generate(self.model, x, count, temperature=0.0)

    def moments(self, x: Tensor, count: int) -> list[float]:
        """When each of the likeliest tokens that continue the prompts is there."""
        return moments(self.model, x, count)

    @property
    def bytes(self) -> int:
        """Of parameters and records, tied ones once."""
        return sum({id(t): t.nbytes for t in (*self.model.parameters(), *self.model.buffers())}.values())


class Images(Side):
    """timm's, which have no configuration."""

    def __call__(self, x: Tensor) -> Tensor:
        return self.model(x)

    def loss(self, x: Tensor) -> Tensor:
        return self.model(x).float().square().mean()


class Text(Side):
    """transformers', and flash-linear-attention's under its names."""

    def __call__(self, x: Tensor) -> Tensor:
        return self.model(x).logits

    def loss(self, x: Tensor) -> Tensor:
        return self.model(x, labels=x).loss

    def generate(self, x: Tensor, count: int, **more: Any) -> Tensor:
        return self.model.generate(
            x, attention_mask=torch.ones_like(x), max_new_tokens=count, min_new_tokens=count, do_sample=False,
            pad_token_id=0, eos_token_id=None, **more,
        )  # fmt: skip

    def moments(self, x: Tensor, count: int) -> list[float]:
        clock = Clock()
        self.generate(x, count, streamer=clock)
        return clock.moments[1:]


class Clock:
    """What transformers gives the prompts to, and each token that is there."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def put(self, _: Tensor) -> None:
        self.moments.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to be shown."""


class MambaSSM(Text):
    """The authors', which gives no loss and counts prompts among the tokens."""

    def loss(self, x: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self(x)[:, :-1].flatten(0, 1).float(), x[:, 1:].flatten())

    def generate(self, x: Tensor, count: int, **more: Any) -> Tensor:
        return self.model.generate(x, max_length=x.shape[1] + count, top_k=1, **more)


class LlamaCpp:
    """A server in this process, which reads a GGUF file: one prompt at a time, on the CPU."""

    def __init__(self, file: Path, threads: int, room: int):
        package: Any = importlib.import_module("xllamacpp")
        options = package.CommonParams()
        options.model.path = str(file)
        options.n_ctx, options.n_parallel, options.verbosity = room, 1, -1
        options.cpuparams.n_threads = options.cpuparams_batch.n_threads = threads
        self.server, self.bytes = package.Server(options), file.stat().st_size

    def generate(self, x: Tensor, count: int, **more: Any) -> Any:
        """Continue the prompt."""
        asked = {"prompt": x[0].tolist(), "n_predict": count, "temperature": 0.0, "cache_prompt": False}
        return self.server.handle_completions(asked | {"ignore_eos": True} | more)

    def moments(self, x: Tensor, count: int) -> list[float]:
        """When the first and the last token are there, by its own clock between them."""
        between = self.generate(x, count)["timings"]["predicted_ms"] / 1e3
        ended = time.perf_counter()
        return [ended - between, ended]

    def top(self, x: Tensor) -> dict[int, float]:
        """Next token -> log-probability, of the likeliest."""
        listed = self.generate(x, 1, n_probs=LIKELIEST)["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        return {one["id"]: one["logprob"] for one in listed}


def moments(model: Any, x: Tensor, count: int) -> list[float]:
    """When each of the likeliest tokens by which ``zoo.generate`` continues prompts is there."""
    asked, found = checked(model, count, {"temperature": 0.0}), []
    for index, _ in enumerate(steps(model, batched(x, None, x.device), asked, None, alone=True)):
        if index in (0, count - 1):
            wait(x.device)
        found.append(time.perf_counter())
    return found


def top(side: Side | LlamaCpp, x: Tensor) -> dict[int, float]:
    """Next token -> log-probability after the first prompt, of the likeliest."""
    if isinstance(side, LlamaCpp):
        return side.top(x)
    values, tokens = side.forward(x)[0, -1].float().log_softmax(-1).topk(LIKELIEST)
    return dict(zip(tokens.tolist(), values.tolist(), strict=True))


def apart(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, as a share of the peer's largest value."""
    return ((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max()).item()


def quiet_transformers() -> Any:
    """transformers without its bars, and without the warning of every forward that CUDA kernels are missing."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    return transformers


def random_statistics(model: nn.Module) -> nn.Module:
    """For the batch norms, and open branches, so that sides can only agree by computing alike."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.0)
    return model


def with_tokenizer_of_bytes(model: nn.Module, folder: Path) -> Path:
    """The model's folder, with a tokenizer, which a GGUF file needs."""
    import tokenizers

    zoo.save_model(model, folder)
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    merged = tokenizers.ByteLevelBPETokenizer({letter: index for index, letter in enumerate(letters)}, [])
    merged.save(str(folder / "tokenizer.json"))
    return folder


def _timm(name: str, model: Any, folder: Path, room: int) -> Side:
    import timm

    if not timm.is_model(name):
        raise ValueError(f"timm has no {name}")
    peer = random_statistics(
        timm.create_model(name, num_classes=model.config.num_classes, in_chans=model.config.in_chans)
    )
    zoo.load_weights(model, peer.state_dict(), "timm's model")
    return Images(peer)


def _transformers(name: str, model: Any, folder: Path, room: int) -> Side:
    written = zoo.convert(folder, folder.parent / "transformers", to="transformers")
    return Text(quiet_transformers().AutoModelForCausalLM.from_pretrained(written, dtype=torch.float32))


def _fla(name: str, model: Any, folder: Path, room: int) -> Side:
    importlib.import_module("fla")  # registers its classes with transformers
    return _transformers(name, model, folder, room)


def _mamba_ssm(name: str, model: Any, folder: Path, room: int) -> Side:
    found: Any = importlib.import_module("mamba_ssm.models.mixer_seq_simple")
    configuration: Any = importlib.import_module("mamba_ssm.models.config_mamba")
    family, c = zoo.model_info(name).family, model.config
    if family not in ("mamba", "mamba2"):
        raise ValueError(f"mamba_ssm has no {family}")
    peer = found.MambaLMHeadModel(configuration.MambaConfig(
        d_model=c.dim, n_layer=c.depth, vocab_size=c.vocab_size, tie_embeddings=c.tie_embeddings,
        pad_vocab_size_multiple=1,
        ssm_cfg={"layer": "Mamba2" if family == "mamba2" else "Mamba1", "d_state": c.d_state},
    ))  # fmt: skip
    zoo.load_weights(model, peer.state_dict(), "mamba_ssm's model")
    return MambaSSM(peer)


def _llama_cpp(name: str, model: Any, folder: Path, room: int) -> LlamaCpp:
    file = zoo.convert(folder, folder.parent / "model.gguf", to="gguf", form="f32")
    return LlamaCpp(file, torch.get_num_threads(), room)


BUILDERS: Mapping[str, Callable[[str, Any, Path, int], Side | LlamaCpp]] = {
    "timm": _timm, "transformers": _transformers, "mamba_ssm": _mamba_ssm, "fla": _fla, "llama_cpp": _llama_cpp,
}  # fmt: skip


def require(peers: Any) -> None:
    """Raise where a peer is not installed, before anything is measured.

    Raises:
        ValueError: names the package.
    """
    for peer in peers:
        if peer in PACKAGES and importlib.util.find_spec(PACKAGES[peer]) is None:
            raise ValueError(f"--against {peer} needs {PACKAGES[peer]}, which is not installed here")


def require_models(peers: Any, groups: Any) -> None:
    """Raise where in each group of names a peer lacks a model, so that none could be measured, before any is built.

    Raises:
        ValueError: names the peers and the models that they lack.
    """
    missing = [
        [f"{p} has no {name}" for p in peers for name in group if p in HAS and not HAS[p](name)] for group in groups
    ]
    if missing and all(missing):
        raise ValueError(
            "nothing can be measured: " + ", ".join(dict.fromkeys(one for some in missing for one in some))
        )


def _in_timm(name: str) -> bool:
    import timm

    return timm.is_model(name)


def _is_language(name: str) -> bool:
    return zoo.model_info(name).task == "language"


# peer -> whether it can have a model of that name; what else it lacks is told by its builder
HAS: Mapping[str, Callable[[str], bool]] = {
    "timm": _in_timm, "transformers": _is_language, "fla": _is_language, "llama_cpp": _is_language,
    "mamba_ssm": lambda name: zoo.model_info(name).family in ("mamba", "mamba2"),
}  # fmt: skip
