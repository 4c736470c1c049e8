"""Logging: an event name in the past tense and fields, to stdout; systemd or the shell keeps it.

Readable lines on a terminal, one JSON object a line otherwise. `node` and `role` are bound once as
context variables, so that no call site repeats them. A reader that went away (a closed pipe) loses
lines and never stops work: see `_Stdout`.

    log = structlog.get_logger()
    log.info("draft_swapped", version=7, replaced=6)
"""

import logging
import sys
from collections.abc import Callable
from typing import Any, Literal

import orjson
import structlog
from structlog.typing import EventDict, WrappedLogger

Format = Literal["auto", "console", "json"]

_SHARED: list[Callable[[WrappedLogger, str, EventDict], Any]] = [
    structlog.contextvars.merge_contextvars,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.StackInfoRenderer(),
]


def configure_tool() -> None:
    """For subcommands: warnings only, and to stderr, since stdout is for what was asked (and may be JSON)."""
    structlog.configure(
        processors=[
            *_SHARED,
            structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def configure(level: str = "info", format: Format = "auto") -> None:
    """Send structlog's and the standard library's records to stdout in one form.

    Args:
        level: "debug", "info", "warning" or "error". Libraries' own records start at "warning".
        format: "auto" takes the console form when stdout is a terminal, JSON otherwise.
    """
    as_console = format == "console" or (format == "auto" and sys.stdout.isatty())
    renderers: list[Callable[[WrappedLogger, str, EventDict], Any]]
    if as_console:
        renderers = [_console_renderer()]
    else:
        renderers = [structlog.processors.format_exc_info, _to_json]
    structlog.configure(
        processors=[*_SHARED, *renderers],
        wrapper_class=structlog.make_filtering_bound_logger(_level(level)),
        logger_factory=_StdoutLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(_Stdout())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*_SHARED, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(_level(level), logging.WARNING))


def bind(**fields: object) -> None:
    """Add fields (node, role) to every later line of this task and of the tasks it starts."""
    structlog.contextvars.bind_contextvars(**fields)


def _console_renderer() -> structlog.dev.ConsoleRenderer:
    # Plain tracebacks: the decorated ones print local variables, which may hold a client's tokens.
    return structlog.dev.ConsoleRenderer(
        colors=sys.stdout.isatty(), pad_event_to=28, exception_formatter=structlog.dev.plain_traceback
    )


def _level(name: str) -> int:
    return logging.getLevelNamesMapping()[name.upper()]


def _to_json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    return orjson.dumps(event, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()


class _Stdout:
    """sys.stdout whose reader may be gone: a line that cannot be written is dropped."""

    def write(self, text: str) -> int:
        try:
            return sys.stdout.write(text)
        except (OSError, ValueError):
            return len(text)

    def flush(self) -> None:
        try:
            sys.stdout.flush()
        except (OSError, ValueError):
            return


class _StdoutLogger:
    """What structlog hands a rendered line to. Looks up sys.stdout at each line, so that tests can capture it."""

    def __init__(self, *_args: object) -> None:
        self._stdout = _Stdout()

    def msg(self, message: str) -> None:
        self._stdout.write(message + "\n")
        self._stdout.flush()

    debug = info = warning = error = critical = exception = log = msg
