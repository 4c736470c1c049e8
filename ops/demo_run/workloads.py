"""The prompts of each phase."""

from pathlib import Path

from demo_data.prompts import chat_prompts, code_prompts

from demo_run.load import Prompt
from demo_run.phases import PHASES


def load_prompts(cache: Path) -> dict[str, list[Prompt]]:
    """Prompts by phase; those of the third are not among those of the first."""
    code = [Prompt(text, "code") for text in code_prompts(cache)]
    chat = [Prompt(text, "chat") for text in chat_prompts(cache)]
    cut = len(code) * 5 // 8
    return {PHASES[0].name: code[:cut], PHASES[1].name: chat, PHASES[2].name: code[cut:]}
