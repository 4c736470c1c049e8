"""Whether the functions that the plug-in hooks exist in the SGLang that is installed: `python -m` prints those missing.

SGLang is imported and not started. It takes its import's time, half a minute on a slow disk. Run it in the environment
that launch_env.py makes, so that a machine without GPUs has the stand-ins.
"""

import importlib
import json
from collections.abc import Iterable


def missing(targets: Iterable[str]) -> list[str]:
    """Dotted names that lead to nothing callable."""
    return [target for target in targets if not callable(_resolve(target))]


def _resolve(target: str) -> object:
    words = target.split(".")
    for end in range(len(words) - 1, 0, -1):
        try:
            found: object = importlib.import_module(".".join(words[:end]))
        except ImportError:
            continue
        for word in words[end:]:
            found = getattr(found, word, None)
        return found
    return None


if __name__ == "__main__":
    from tide_daemon.engine.sglang.hooks import TARGETS

    print(json.dumps(missing(TARGETS)))
