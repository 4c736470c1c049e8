"""What is wrong with a fleet and what to do about it, from what is shown of it. Pure.

Most urgent first: nobody decides, nodes do not serve, a draft is not where it should be, samples are lost, trainers.
"""

from collections.abc import Iterator

from tide_daemon.roles.fleet_status import FleetStatus, Problem, ServerRow, StreamRow, TrainerRow

LOST_AFTER_S = 30.0
"""Reports come every second or two."""
LEADER_SILENT_S = 120.0
"""A leader journals every event, a tick among them (controller.tick_s, a minute at most)."""
_DROPPED_SHARE = 0.05
_LOSES = 0.95
"""Speculation that is this far below plain is worth a look; the model's own error is a few percent."""
_NEARLY_FULL = 0.95


def problems_of(status: FleetStatus) -> list[Problem]:
    """What is wrong, most urgent first."""
    return [
        *_leader(status),
        *(problem for row in status.servers for problem in _server(row)),
        *(problem for row in status.trainers for problem in _trainer(row)),
        *(problem for row in status.streams for problem in _stream(row)),
    ]


def _leader(status: FleetStatus) -> Iterator[Problem]:
    if status.at - status.decided_at > LEADER_SILENT_S:
        yield Problem(
            "no controller leads: nothing is decided",
            "Is tide-daemon@controller running, and can it reach the broker? Nodes go on with what they were asked "
            "for, and take steps away by themselves where they do not pay.",
            "TideNoLeader",
        )


def _server(row: ServerRow) -> Iterator[Problem]:
    said = f": {row.problem}" if row.problem else ""
    if row.heard_s > LOST_AFTER_S:
        yield Problem(
            f"{row.node} was not heard of for {row.heard_s:.0f} s",
            f"Is its daemon or the way to the broker away? systemctl status tide-daemon@server on {row.node}.",
            "TideNodeLost",
        )
        return
    if row.engine == "down":
        yield Problem(
            f"{row.node}: the engine is down{said}",
            "The daemon starts it again. If it goes down again and again, SGLang's own log says why.",
            "TideEngineRestarting",
        )
        return
    if row.engine == "capture_off":
        yield Problem(
            f"{row.node} serves, but cannot capture or swap{said}",
            f"The plug-in did not fit this SGLang: tide-daemon doctor --role server on {row.node} says what to change.",
            "TideNotReady",
        )
    elif row.engine == "ready" and row.desired_version and row.version != row.desired_version:
        yield Problem(
            f"{row.node} runs version {row.version} and is asked for version {row.desired_version}{said}",
            f"A swap takes some seconds. If it stays so: tide-daemon why --node {row.node}.",
            "TideDraftNotApplied",
        )
    if row.of_plain is not None and row.of_plain < _LOSES:
        yield Problem(
            f"{row.node} decodes at {row.of_plain:.2f} of plain by the cost model",
            f"The controller takes steps away within seconds. If it stays so: tide-daemon why --node {row.node}.",
            "TideAcceptLengthLow",
        )
    if row.dropped_share > _DROPPED_SHARE:
        yield Problem(
            f"{row.node} drops {row.dropped_share:.0%} of the rows that it captures",
            "Serving is not affected; training sees less. A lower capture.sample_rate, or a faster broker.",
            "TideRowsDropped",
        )


def _trainer(row: TrainerRow) -> Iterator[Problem]:
    if row.heard_s > LOST_AFTER_S:
        yield Problem(
            f"trainer {row.trainer} was not heard of for {row.heard_s:.0f} s",
            f"systemctl status tide-daemon@trainer on {row.trainer}. Samples wait in the stream meanwhile.",
            "TideDaemonDown",
        )
    elif row.state == "failed":
        yield Problem(
            f"trainer {row.trainer} failed: {row.problem or 'its log has why'}",
            "The round is asked for again after a pause. Its log has the whole story.",
            "TideTrainingStalled",
        )


def _stream(row: StreamRow) -> Iterator[Problem]:
    full = row.num_bytes / row.max_bytes if row.max_bytes else 0.0
    if row.name == "TIDE_DRAFT" and full > _NEARLY_FULL:
        yield Problem(
            f"the stream of drafts is {full:.0%} full, and refuses new ones when it is",
            "Raise bus.draft_max_bytes and run tide-daemon admin init, or forget drafts: tide-daemon drafts.",
        )
    if row.name == "TIDE_HIDDEN" and full > _NEARLY_FULL and row.num_waiting:
        yield Problem(
            f"{row.num_waiting:,} chunks wait for a trainer, and the stream is {full:.0%} full: the oldest are lost",
            "Trainers are away or too slow. Newer samples are worth more, so nothing breaks; "
            "a lower capture.sample_rate loses less.",
            "TideTrainingStalled",
        )
