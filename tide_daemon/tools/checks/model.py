"""The target's files, where drafts are trained, what the node holds of them: layers, vocabulary, hooks, checkpoints."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tide_daemon.config.sections import Config
from tide_daemon.errors import ConfigError, TideError
from tide_daemon.tools.checks.finding import FAILED, OK, SKIPPED, WARNING, Finding

_IMPORT_LIMIT_S = 300.0


def check_model(config: Config, roles: Sequence[str], *, quick: bool) -> list[Finding]:
    """Findings about the target; `quick` leaves out what imports torch or SGLang."""
    found: list[Finding] = []
    layers: tuple[int, ...] = ()
    paths = {"server": config.server.model_path, "trainer": config.trainer.target_path}
    path = next((paths[role] for role in roles if paths.get(role)), None)
    if path is not None:
        described, layers = _target(config, path, roles)
        found += described
    if "server" in roles and config.server.mode == "launch" and config.server.model_path is not None:
        found.append(_arguments(config, config.server.model_path))
    if quick:
        return found
    if "server" in roles and config.server.mode == "launch":
        found.append(_hooks(config))
    if "trainer" in roles:
        found.append(_training_device(config))
    if set(roles) & {"server", "trainer"}:
        found += _cached_drafts(config, roles, layers)
    return found


def _target(config: Config, path: Path, roles: Sequence[str]) -> tuple[list[Finding], tuple[int, ...]]:
    from tide_daemon.engine.sglang.target import default_aux_layers, read_config, target_spec

    layers = config.draft.aux_layer_ids
    try:
        described = read_config(path)
        num_layers, vocab_size = int(described["num_hidden_layers"]), int(described["vocab_size"])
        layers = layers or default_aux_layers(num_layers)
        # A trainer reads tensors and config alone; the fingerprint is the server's to say.
        mark = target_spec(path, config.node.model, layers).target_fingerprint[:12] if "server" in roles else ""
    except (ConfigError, KeyError, ValueError) as error:
        return [Finding("target", FAILED, str(error), "point the path at a folder in Hugging Face format")], ()
    found = [Finding("target", OK, f"{path}: {num_layers} layers{mark and f', fingerprint {mark}'}")]
    if max(layers) > num_layers - 2:
        # SGLang captures the input of a layer, so that the last layer's output is out of reach.
        advice = f"draft.aux_layer_ids are 0-based layers whose output is taken: at most {num_layers - 2} here"
        found.append(Finding("layer ids", FAILED, f"{list(layers)} of {num_layers} layers", advice))
    else:
        found.append(Finding("layer ids", OK, f"{list(layers)} of {num_layers} layers"))
    if config.draft.vocab_size > vocab_size:
        advice = f"set draft.vocab_size to {vocab_size} or less"
        found.append(Finding("vocabulary", FAILED, f"the draft's {config.draft.vocab_size} of {vocab_size}", advice))
    else:
        found.append(Finding("vocabulary", OK, f"the draft proposes {config.draft.vocab_size} of {vocab_size} tokens"))
    return found, layers


def _arguments(config: Config, model_path: Path) -> Finding:
    """Whether drafts can work with SGLang's arguments."""
    from tide_daemon.engine.sglang.start import check_arguments, check_dtype

    server = config.server
    try:
        check_arguments(server.arguments)
        check_dtype(model_path, server.arguments, server.device)
    except ConfigError as error:
        return Finding("arguments", FAILED, str(error), "change server.arguments")
    return Finding("arguments", OK, f"{len(server.arguments)} words of server.arguments, none in the way of drafts")


def _hooks(config: Config) -> Finding:
    """Whether SGLang has the functions that the plug-in hooks; it is imported in a process of its own."""
    from tide_daemon.engine.sglang.launch_env import launch

    environment = launch(config.server.arguments, device=config.server.device).environment
    command = [sys.executable, "-m", "tide_daemon.engine.sglang.hook_check"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=_IMPORT_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding("hooks", WARNING, f"importing SGLang took over {_IMPORT_LIMIT_S:.0f} s", "is its disk slow?")
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no words"])[-1]
        return Finding("hooks", FAILED, f"SGLang cannot be imported: {last}", "python -c 'import sglang' says more")
    missing = json.loads(done.stdout.strip().splitlines()[-1])
    if missing:
        advice = "install the SGLang that the package's extra names; with this one capture and swap stay off"
        return Finding("hooks", FAILED, f"SGLang lacks {', '.join(missing)}", advice)
    return Finding("hooks", OK, "SGLang has every function that is hooked")


def _training_device(config: Config) -> Finding:
    """Where this node would train."""
    try:
        from tide_daemon.trainer.compute import choose
    except ImportError as error:
        return Finding("training device", SKIPPED, f"cannot be asked: {error}")
    try:
        found = choose(config.trainer.device)
    except TideError as error:
        return Finding(
            "training device", FAILED, str(error), "pip install torch for this GPU, or trainer.device = 'cpu'"
        )
    return Finding("training device", OK, f"{found.device.type}, {str(found.dtype).removeprefix('torch.')}")


def _cached_drafts(config: Config, roles: Sequence[str], layers: tuple[int, ...]) -> list[Finding]:
    """The newest checkpoints on this disk: readable, of these layers, with a vocabulary map that fits."""
    assert config.node.state_dir is not None, "the loader fills it in"
    folders = {"server": config.node.state_dir / "drafts", "trainer": config.node.state_dir / "trainer" / "drafts"}
    paths = [path for role in roles if role in folders for path in sorted(folders[role].glob("[0-9]*-*"))[-2:]]
    if not paths:
        return [Finding("drafts", SKIPPED, "none on this disk yet")]
    try:
        from tide_daemon.draft import checkpoint
    except ImportError as error:
        return [Finding("drafts", SKIPPED, f"cannot be read: {error}")]
    found = []
    for path in paths:
        try:
            held = checkpoint.load(path)
        except TideError as error:
            found.append(Finding("drafts", WARNING, f"{path.name}: {error}", "delete it; it is fetched again"))
            continue
        if layers and held.config.aux_layer_ids != layers:
            advice = "another target or other draft.aux_layer_ids; a new model name keeps the two apart"
            found.append(Finding("drafts", FAILED, f"{path.name} is of layers {held.config.aux_layer_ids}", advice))
        else:
            found.append(Finding("drafts", OK, f"{path.name}: {held.vocab_map.size} tokens mapped"))
    return found
