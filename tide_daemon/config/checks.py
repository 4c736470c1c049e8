"""Rules that involve several settings, and warnings about settings that do nothing in the chosen roles.

Each rule adds a sentence that says what is wrong and what to change; load.py raises them together.
"""

import itertools
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from tide_daemon.addresses import without_login
from tide_daemon.config.sections import ROLES, SECTION_ROLES, Config, all_settings
from tide_daemon.loopback import is_loopback


def problems_of(config: Config, roles: Sequence[str]) -> list[str]:
    """What is wrong between settings, for these roles; empty if nothing."""
    return [
        *_missing(config, roles),
        *_bus_problems(config, roles),
        *_status_problems(config),
        *_draft_problems(config),
        *_learning_problems(config),
    ]


def warnings_of(config: Config, roles: Sequence[str], origins: Mapping[str, str]) -> list[str]:
    """Settings that somebody set and that nothing will read."""
    warnings = []
    for setting in all_settings():
        if setting.key not in origins:
            continue
        readers = setting.rules.effective_for or SECTION_ROLES[setting.section]
        if not set(readers) & set(roles):
            warnings.append(
                f"{setting.key} ({origins[setting.key]}) has no effect: only the role "
                f"{' and the role '.join(readers)} reads it, and the chosen ones are {', '.join(roles)}"
            )
    set_and_idle = [
        ("bus.embedded_port", bool(config.bus.url), "bus.url is set, so no private NATS server is started"),
        ("server.arguments", config.server.mode == "modelled", f'server.mode is "{config.server.mode}"'),
        ("server.start_timeout_s", config.server.mode != "launch", f'server.mode is "{config.server.mode}"'),
    ]
    for key, idle, because in set_and_idle:
        if idle and key in origins and "server" in (*roles, "server" if key.startswith("bus.") else ""):
            warnings.append(f"{key} ({origins[key]}) has no effect: {because}")
    return warnings


def _is_near(url: str) -> bool:
    return is_loopback(urlsplit(url).hostname or "")


def _missing(config: Config, roles: Sequence[str]) -> list[str]:
    problems = []
    for setting in all_settings():
        needed_by = [role for role in roles if role in setting.rules.required_for]
        value = getattr(getattr(config, setting.section), setting.name)
        if (
            needed_by
            and value in (None, "", ())
            and not (setting.key == "server.model_path" and config.server.mode == "modelled")
        ):
            problems.append(f"{setting.key}: the role {needed_by[0]} needs it. {setting.rules.meaning}")
    return problems


def _bus_problems(config: Config, roles: Sequence[str]) -> list[str]:
    bus = config.bus
    problems = []
    if bus.replicas not in (1, 3, 5):
        problems.append(f"bus.replicas: must be 1, 3 or 5, got {bus.replicas}")
    if not bus.url and set(roles) != set(ROLES):
        problems.append("bus.url: must name the NATS server; only --role all starts a private one")
    outside = [address for address in bus.url.split(",") if address.startswith("nats://") and not _is_near(address)]
    if outside and not bus.allow_plaintext:
        problems.append(
            f"bus.url: {without_login(outside[0])} is another machine and not encrypted; "
            "begin it with tls://, or set bus.allow_plaintext"
        )
    tls_files = {"tls_ca_file": bus.tls_ca_file, "tls_cert_file": bus.tls_cert_file, "tls_key_file": bus.tls_key_file}
    given = [name for name, path in tls_files.items() if path is not None]
    if given and not bus.url.startswith("tls://"):
        problems.append(f"bus.{given[0]}: needs an address that begins with tls:// in bus.url")
    if (bus.tls_cert_file is None) != (bus.tls_key_file is None):
        problems.append("bus.tls_cert_file, bus.tls_key_file: set both or none")
    if bus.credentials_file is not None and bus.nkey_file is not None:
        problems.append("bus.credentials_file, bus.nkey_file: set only one of them")
    files = {**tls_files, "credentials_file": bus.credentials_file, "nkey_file": bus.nkey_file}
    problems += [f"bus.{name}: there is no file {path}" for name, path in files.items() if path and not path.is_file()]
    return problems


def _status_problems(config: Config) -> list[str]:
    status = config.status
    if status.enabled and not is_loopback(status.host) and not status.token:
        return [f"status.host: {status.host} can be reached from other machines; set status.token or use 127.0.0.1"]
    return []


def _draft_problems(config: Config) -> list[str]:
    ids = config.draft.aux_layer_ids
    problems = []
    if ids and len(ids) != 3:
        problems.append(f"draft.aux_layer_ids: EAGLE-3 takes three layers, got {len(ids)}")
    if any(later <= earlier for earlier, later in itertools.pairwise(ids)):
        problems.append(f"draft.aux_layer_ids: must be ascending and distinct, got {list(ids)}")
    if not config.capture.token_ids and not config.capture.topk_logprobs:
        problems.append("capture.token_ids: without them capture.topk_logprobs must be at least 1: nothing is learnt")
    if config.capture.chunk_bytes > config.capture.publish_bytes_in_flight:
        problems.append("capture.chunk_bytes: must not be above capture.publish_bytes_in_flight")
    return problems


def _learning_problems(config: Config) -> list[str]:
    trainer, controller = config.trainer, config.controller
    problems = []
    if trainer.round_min_tokens > trainer.round_max_tokens:
        problems.append("trainer.round_min_tokens: must not be above trainer.round_max_tokens")
    if trainer.sequence_tokens > trainer.batch_tokens:
        problems.append("trainer.sequence_tokens: must not be above trainer.batch_tokens")
    if controller.speculate_off > controller.speculate_on:
        problems.append("controller.speculate_off: must not be above controller.speculate_on")
    if controller.ema_long <= controller.ema_short:
        problems.append("controller.ema_long: must be above controller.ema_short")
    return problems
