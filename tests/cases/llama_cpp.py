"""llama.cpp in a process of its own, for it ends the process where a file is wrong.

`python llama_cpp.py FILE TEXT COUNT` prints what may follow a text, [[token, log-probability], ...], as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LETTER = 65  # a token that is chosen, for of half a character nothing is told; what is listed stays as it was
NOT_HERE = "llama.cpp (xllamacpp) is not here"


def log_probabilities(file: Path, text: str, count: int) -> Tensor:
    """Of every token after a text, with a cache in float32; NaN for one that llama.cpp does not list."""
    import torch  # not in the other process, which is faster without

    command = [sys.executable, __file__, str(file), text, str(count)]
    alone = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=alone)
    assert done.returncode == 0, done.stderr[-2000:]
    result = torch.full((count,), torch.nan)
    for token, value in json.loads(done.stdout.splitlines()[-1]):
        result[token] = value
    return result


def _main(file: str, text: str, count: str) -> None:
    import xllamacpp

    options = xllamacpp.CommonParams()
    options.model.path = file
    options.n_ctx, options.n_parallel, options.warmup = 256, 1, False
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = 1
    options.cache_type_k = options.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    options.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    asked = {"prompt": text, "n_predict": 1, "n_probs": int(count), "logit_bias": [[LETTER, 100]]}
    found = xllamacpp.Server(options).handle_completions(asked)
    (listed,) = (found if isinstance(found, dict) else json.loads(found))["choices"][0]["logprobs"]["content"]
    sys.stdout.write(json.dumps([[one["id"], one["logprob"]] for one in listed["top_logprobs"]]) + "\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
