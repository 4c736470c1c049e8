"""Entry point of the group `sglang.srt.plugins`: hooks our parts into SGLang's scheduler process.

SGLang calls `register` in the launching process, in every scheduler and in the detokenizer. Without
TIDE_ENGINE_DIR it does nothing. With it, only spawned processes are hooked; of those only a scheduler ever
constructs a Scheduler, and nothing of ours runs before that.

Hooks only, no patch: `HookRegistry` (srt/plugins/hook_registry.py) wraps the named functions. A target
that does not exist is only logged there, so runtime.py checks afterwards that every hook took.
"""

import multiprocessing

from tide_daemon.engine.sglang.settings import engine_dir


def register() -> None:
    """Register all hooks, or none."""
    directory = engine_dir()
    if directory is None or multiprocessing.parent_process() is None:
        return
    from tide_daemon.engine.sglang import hooks

    hooks.register(directory)
