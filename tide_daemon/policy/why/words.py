"""Times, steps tables and verdicts as text."""

from datetime import UTC, datetime

from tide_daemon.policy.events import StepsTable

VERDICTS = {"promote": "promoted", "reject": "refused", "need_more_data": "left undecided"}


def clock(at: float) -> str:
    """Unix seconds as date and time of day, UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def ago(at: float, now: float) -> str:
    """How long before `now`; "now" for less than a second or the future."""
    seconds = now - at
    for unit, name in ((86_400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name} ago"
    return f"{seconds:.0f} s ago" if seconds >= 1.0 else "now"


def steps_words(table: StepsTable) -> str:
    """A steps table: "3 drafted tokens up to batch 4, plain above"."""
    if not any(num_steps for _, num_steps in table):
        return "plain decoding at every batch size"
    parts = []
    below = 0
    for largest, num_steps in table:
        where = f"up to batch {largest}" if below == 0 else f"from batch {below + 1} to {largest}"
        if largest == below + 1:
            where = f"at batch {largest}"
        what = "plain" if num_steps == 0 else f"{num_steps} drafted token{'s' if num_steps > 1 else ''} a step"
        parts.append(f"{what} {where}")
        below = largest
    return ", ".join([*parts, "plain above"])


def num_steps_words(num_steps: int) -> str:
    """ "1 step", "3 steps"."""
    return f"{num_steps} step{'' if num_steps == 1 else 's'}"
