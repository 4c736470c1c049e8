"""Composes a role from the configuration: the one place where sections meet components' settings.

Imports stand inside the functions, so that a role's packages are needed only where it runs.
"""

import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from tide_daemon.bus.port import Bus
from tide_daemon.config.carry import carry_over
from tide_daemon.config.sections import Config
from tide_daemon.roles.port import Role

if TYPE_CHECKING:
    from tide_daemon.engine.port import Engine
    from tide_daemon.engine.sglang.start import SglangSettings
    from tide_daemon.wire.records import TargetSpec


def build_role(name: str, config: Config, bus: Bus) -> Role:
    """The role of that name, not yet running.

    Raises:
        ImportError: a package that it needs is missing.
        ConfigError, StoreError: it cannot work with these settings or files.
    """
    return _BUILDERS[name](config, bus)


def reconfigure(name: str, role: Role, config: Config) -> None:
    """Have a running role take over the settings that may change while it runs (Rules.reloads)."""
    if name == "server":
        from tide_daemon.roles.server import ServerRole

        assert isinstance(role, ServerRole), "built above"
        capture = config.capture
        role.limit_capture(capture.sample_rate, capture.max_rows, capture.excluded_workloads)


def _controller(config: Config, bus: Bus) -> Role:
    from tide_daemon.policy.settings import PolicySettings
    from tide_daemon.roles.controller import ControllerRole
    from tide_daemon.roles.fleet_watch import FleetWatch

    return ControllerRole(
        bus,
        carry_over(PolicySettings, config.controller, config.draft),
        config.node.model,
        config.node.name,
        lease_ttl_s=config.controller.lease_ttl_s,
        tick_s=config.controller.tick_s,
        # Nobody looks where there is no page.
        watch=FleetWatch(bus, config.node.model) if config.status.enabled else None,
    )


def _trainer(config: Config, bus: Bus) -> Role:
    from tide_daemon.roles.trainer import TrainerRole
    from tide_daemon.trainer.settings import TrainerSettings

    assert config.node.state_dir is not None, "the loader fills it in"
    settings = carry_over(
        TrainerSettings,
        config.trainer,
        name=config.node.name,
        model=config.node.model,
        draft_vocab_size=config.draft.vocab_size,
        target_path=str(config.trainer.target_path or ""),
    )
    return TrainerRole(bus, settings, config.node.state_dir / "trainer")


def _server(config: Config, bus: Bus) -> Role:
    from tide_daemon.policy.settings import PolicySettings
    from tide_daemon.roles.draft_fetch import DraftFetcher
    from tide_daemon.roles.server import ServerRole, ServerSettings
    from tide_daemon.roles.target_rows import publish_target_rows

    assert config.node.state_dir is not None, "the loader fills it in"
    engine = _modelled_engine(config) if config.server.mode == "modelled" else _sglang_engine(config)
    fetcher = DraftFetcher(bus, config.node.state_dir / "drafts", keep=config.server.drafts_kept)
    settings = carry_over(
        ServerSettings,
        config.server,
        config.capture,
        node=config.node.name,
        publish_bytes=config.capture.publish_bytes_in_flight,
        max_sample_rate=config.capture.sample_rate,
    )
    model_path = config.server.model_path

    async def share_target(spec: "TargetSpec") -> None:
        assert model_path is not None, "asked for below only with one"
        await publish_target_rows(bus, spec, model_path)

    shares = config.server.share_target and model_path is not None
    policy = carry_over(PolicySettings, config.controller, config.draft)
    return ServerRole(bus, engine, fetcher.fetch, settings, policy, share_target if shares else None)


def _sglang_engine(config: Config) -> "Engine":
    from tide_daemon.engine.sglang.launcher import SglangEngine

    return SglangEngine(sglang_settings(config))


def sglang_settings(config: Config) -> "SglangSettings":
    """How SGLang is started, or found when somebody else starts it."""
    from tide_daemon.engine.sglang.settings import PluginSettings
    from tide_daemon.engine.sglang.start import SglangSettings

    assert config.node.run_dir is not None, "the loader fills it in"
    plugin = carry_over(PluginSettings, config.capture, config.server, topk=config.capture.topk_logprobs, collect=False)
    return carry_over(
        SglangSettings,
        config.server,
        config.capture,
        config.draft,
        model=config.node.model,
        node=config.node.name,
        run_dir=config.node.run_dir / "engine",
        draft_vocab_size=config.draft.vocab_size,
        plugin=plugin,
        attach=config.server.mode == "attach",
    )


def _modelled_engine(config: Config) -> "Engine":
    """No model, so that a fleet can be tried: the target of server.model_path by its files alone, else a tiny one."""
    from tide_daemon.engine.modelled import TINY_TARGET, ModelledEngine, ModelledSettings
    from tide_daemon.engine.sglang.target import default_aux_layers_of, target_spec

    model, layers, path = config.node.model, config.draft.aux_layer_ids, config.server.model_path
    if path is not None:
        layers = layers or default_aux_layers_of(path)
        spec = target_spec(path, model, layers)
    else:
        spec = replace(TINY_TARGET, model=model, aux_layer_ids=layers or TINY_TARGET.aux_layer_ids)
    return ModelledEngine(
        carry_over(
            ModelledSettings,
            config.draft,
            config.capture,
            spec=spec,
            node=config.node.name,
            topk=min(config.capture.topk_logprobs, spec.vocab_size),
            # Nodes of a fleet that is tried differ, and each does the same in every run.
            seed=zlib.crc32(config.node.name.encode()),
        )
    )


_BUILDERS: dict[str, Callable[[Config, Bus], Role]] = {
    "controller": _controller,
    "server": _server,
    "trainer": _trainer,
}
