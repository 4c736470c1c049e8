"""What the page is sent: a part of the snapshot, chosen by name, so that nothing else can get there. Pure.

    {"at", "daemon", "ready", "connected", "health", "problems": [{"what", "do", "page"}],
     "roles": {name: {"state", "num_failures", "last_error"}},
     "server": {...} | None, "trainer": {...} | None, "controller": {...} | None, "fleet": {...} | None,
     "point": {name: number}}

`fleet` is the controller's overview (roles/fleet_status.py). `point` is what the charts draw of this moment.
"""

from collections.abc import Mapping

from tide_daemon.status.problems import problems_of
from tide_daemon.status.source import Source

_DAEMON = ("node", "model", "roles", "version", "started_at", "stopping", "reload")
_ROLE = ("state", "num_failures", "last_error")
_SERVER = (
    *("engine", "draft_version", "desired_draft_version", "num_running", "accept_length", "tokens_per_s", "num_steps"),
    *(
        "decode_tokens_per_s",
        "plain_tokens_per_s",
        "of_plain",
        "collecting",
        "rows_written",
        "rows_dropped",
        "rows_published",
        "bytes_published",
        "chunks_waiting",
    ),
    *("chunks_dropped", "requests_opted_out", "num_swaps", "engine_starts", "reason", "last_error"),
)
_TRAINER = (
    *("state", "reason", "round", "step", "num_steps_total", "loss", "left_s", "serving_version", "num_requests"),
    *("num_tokens", "num_heldout", "new_tokens", "store_bytes", "refused", "serving_accept_length"),
    *("candidate_accept_length", "shadow", "candidates_published"),
)
_CONTROLLER = ("name", "leading", "fencing_token", "decisions_total", "num_nodes", "num_trainers")
_FLEET = (
    *("leader", "fencing_token", "serving_version", "stage", "candidate_version", "canary", "pinned", "servers"),
    *("trainers", "streams", "drafts", "decisions", "workloads"),
)


def page_state(source: Source, now: float) -> dict[str, object]:
    """The state to send, at `now` (unix seconds)."""
    snapshot, health = source.snapshot(), source.health()
    roles = _mapping(snapshot.get("roles"))
    shown = {name: _mapping(_mapping(view).get("snapshot")) for name, view in roles.items()}
    overview = _mapping(shown.get("controller", {}).get("overview"))
    state: dict[str, object] = {
        "at": now,
        "daemon": _part(_mapping(snapshot.get("daemon")), _DAEMON),
        "ready": source.ready(),
        "connected": bool(_mapping(snapshot.get("bus")).get("connected")),
        "bus_losses": _mapping(snapshot.get("bus")).get("num_losses", 0),
        "health": dict(health),
        "problems": [*problems_of(health), *_list(overview.get("problems"))],
        "roles": {name: _part(_mapping(view), _ROLE) for name, view in roles.items()},
        "server": _part(shown["server"], _SERVER) if shown.get("server") else None,
        "trainer": _part(shown["trainer"], _TRAINER) if shown.get("trainer") else None,
        "controller": _part(shown["controller"], _CONTROLLER) if shown.get("controller") else None,
        "fleet": _part(overview, _FLEET) if overview else None,
    }
    state["point"] = point_of(state)
    return state


def point_of(state: Mapping[str, object]) -> dict[str, float]:
    """What the charts draw of one moment; what is not known is left out.

    Tokens a second are sums over the fleet's busy nodes; accept length is their mean, weighted by tokens; loss is that
    of the first trainer that trains; waiting are chunks of the hidden-state stream.
    """
    point: dict[str, float] = {}
    fleet, server, trainer = (_mapping(state.get(name)) for name in ("fleet", "server", "trainer"))
    rows = [_mapping(row) for row in _list(fleet.get("servers"))] if fleet else [server]
    busy = [row for row in rows if _number(row.get("of_plain")) is not None]
    if busy:
        point["tokens_per_s"] = sum(_number(row.get("decode_tokens_per_s")) or 0.0 for row in busy)
        point["plain_tokens_per_s"] = sum(_number(row.get("plain_tokens_per_s")) or 0.0 for row in busy)
    drafting = [(_number(row.get("accept_length")), _number(row.get("decode_tokens_per_s")) or 0.0) for row in busy]
    lengths = [(length, weight) for length, weight in drafting if length is not None and weight > 0.0]
    if lengths:
        point["accept_length"] = sum(length * weight for length, weight in lengths) / sum(w for _, w in lengths)
    trainers = [_mapping(row) for row in _list(fleet.get("trainers"))] or ([trainer] if trainer else [])
    losses = [_number(row.get("loss")) for row in trainers if row.get("state") == "training" and row.get("step")]
    if losses and losses[0] is not None:
        point["loss"] = losses[0]
    for stream in (_mapping(row) for row in _list(fleet.get("streams"))):
        waiting = _number(stream.get("num_waiting"))
        if stream.get("name") == "TIDE_HIDDEN" and waiting is not None:
            point["waiting"] = waiting
    return {name: round(value, 4) for name, value in point.items()}


def _part(values: Mapping[str, object], names: tuple[str, ...]) -> dict[str, object]:
    return {name: values[name] for name in names if name in values}


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else []


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
