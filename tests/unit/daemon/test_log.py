"""One JSON object a line off a terminal, for our records and for libraries'; a closed pipe never raises."""

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from tide_daemon import log


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    handlers = logging.getLogger().handlers[:]
    structlog.contextvars.clear_contextvars()
    yield
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()
    logging.getLogger().handlers[:] = handlers


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_records_are_json_with_bound_fields(capsys: pytest.CaptureFixture[str]) -> None:
    """Event, level, time, node and role."""
    log.configure("info", "auto")
    log.bind(node="n1", role="trainer")
    structlog.get_logger().debug("not_shown")
    structlog.get_logger().info("round_finished", loss=0.5)
    (record,) = lines(capsys)
    assert record.pop("timestamp")
    assert record == {"event": "round_finished", "level": "info", "loss": 0.5, "node": "n1", "role": "trainer"}


def test_libraries_write_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    """From warning upwards, with the logger's name."""
    log.configure("info", "json")
    logging.getLogger("nats").info("not shown")
    logging.getLogger("nats").warning("slow %s", "consumer")
    (record,) = lines(capsys)
    assert (record["event"], record["logger"], record["level"]) == ("slow consumer", "nats", "warning")


def test_tracebacks_are_fields_without_local_variables(capsys: pytest.CaptureFixture[str]) -> None:
    """In both forms: local variables may hold a client's tokens."""
    prompt = "somebody's secret"
    for form in ("json", "console"):
        log.configure("info", form)  # type: ignore[arg-type]
        try:
            raise ValueError(len(prompt))
        except ValueError:
            structlog.get_logger().exception("chunk_refused")
        output = capsys.readouterr().out
        assert "Traceback" in output and "ValueError" in output and prompt not in output


def test_a_reader_that_went_away_loses_lines_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logging to a closed pipe neither raises nor stops work."""

    class Closed:
        def isatty(self) -> bool:
            return False

        def write(self, _text: str) -> int:
            raise BrokenPipeError

        def flush(self) -> None:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", Closed())
    log.configure("info", "auto")
    structlog.get_logger().info("round_finished")
    logging.getLogger("nats").error("x")
