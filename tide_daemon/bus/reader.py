"""Makes the short-lived consumers that read a stream without acknowledging anything: see tail.py and erasing.py."""

from typing import Any

from tide_daemon.bus.connection import Connection
from tide_daemon.errors import BusSetupError, BusUnavailableError

_NANO = 1_000_000_000


async def create_reader(
    connection: Connection, stream: str, name: str, subject: str, inactive_s: float, doing: str, **options: object
) -> dict[str, Any]:
    """Make the consumer `name` of `subject`; the broker's answer.

    Args:
        inactive_s: the broker deletes it after so long without a request.
        doing: for the message, "follow" for one.
        options: where it begins and what it delivers, as JetStream names them.

    Raises:
        BusSetupError: what was asked for cannot be.
        BusUnavailableError: not now.
    """
    config = {
        "name": name,
        "ack_policy": "none",
        "filter_subject": subject,
        "inactive_threshold": int(inactive_s * _NANO),
        "mem_storage": True,
        "num_replicas": 1,
        **options,
    }
    answer: dict[str, Any] = await connection.api(
        f"CONSUMER.CREATE.{stream}.{name}.{subject}", {"stream_name": stream, "config": config}
    )
    if "error" in answer:
        error = answer["error"]
        text = f"cannot {doing} {subject}: {error.get('description')}"
        # 4xx is about what we asked for; 5xx about the state of the server.
        raise BusSetupError(text) if 400 <= error.get("code", 0) < 500 else BusUnavailableError(text)
    return answer
