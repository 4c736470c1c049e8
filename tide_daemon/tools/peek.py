"""`tide-daemon peek`: shows messages of the bus in plain words, consuming nothing.

    tide-daemon peek TIDE_HIDDEN --seq 42 --url nats://127.0.0.1:4222
    tide-daemon peek --last tide.v1.control.smollm2-135m.server.gpu-1 --config tide.toml
    nats stream view TIDE_HIDDEN --translate 'tide-daemon peek -'

With "-" the payload comes on standard input and no broker and no configuration is needed.
"""

import argparse
import asyncio
import sys
from datetime import UTC, datetime
from typing import BinaryIO, TextIO

from tide_daemon.bus.port import Bus, StoredMessage
from tide_daemon.errors import ConfigError, WireError
from tide_daemon.exit_codes import ExitCode
from tide_daemon.tools.configured_bus import OpenBus, add_bus_arguments, open_configured_bus
from tide_daemon.tools.message_view import describe, describe_json

MAX_INPUT_BYTES = 64 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to show and how."""
    parser.add_argument("source", nargs="?", metavar="STREAM", help='stream to read with --seq, or "-" for stdin')
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--seq", type=int, metavar="N", help="the message of this sequence in STREAM")
    which.add_argument("--last", metavar="SUBJECT", help="the newest message of this subject")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of text")
    parser.add_argument("--show-tokens", action="store_true", help="token ids too: they are what users said")
    add_bus_arguments(parser, ask_model=False)


def run(arguments: argparse.Namespace) -> int:
    """Show one message; returns the exit code."""
    if arguments.source == "-":
        return main_stdin(sys.stdin.buffer, sys.stdout, as_json=arguments.json, show_tokens=arguments.show_tokens)
    if arguments.last is None and (arguments.source is None or arguments.seq is None):
        raise ConfigError('say what to show: STREAM --seq N, --last SUBJECT, or "-" for standard input')
    return asyncio.run(run_on_bus(arguments, open_configured_bus, sys.stdout))


async def run_on_bus(arguments: argparse.Namespace, open_bus: OpenBus, out: TextIO) -> int:
    """Show the message that the arguments name, read through a bus that is opened and closed here.

    Raises:
        BusError: the broker cannot be reached or has no such stream.
    """
    async with open_bus(arguments) as opened:
        message = await peek_stream(opened.bus, arguments.source, sequence=arguments.seq, last=arguments.last)
    if message is None:
        wanted = f"subject {arguments.last}" if arguments.last else f"sequence {arguments.seq} of {arguments.source}"
        print(f"no message: {wanted} is empty, deleted, or never was", file=out)
        return ExitCode.FAILED
    if not arguments.json:
        stored_at = datetime.fromtimestamp(message.stored_at, UTC).isoformat(timespec="milliseconds")
        print(f"subject: {message.subject}\nsequence: {message.sequence}\nstored_at: {stored_at}", file=out)
    return show(message.data, out, as_json=arguments.json, show_tokens=arguments.show_tokens)


async def peek_stream(
    bus: Bus, stream: str | None, *, sequence: int | None = None, last: str | None = None
) -> StoredMessage | None:
    """A stored message, by the newest of a subject or by a stream's sequence; None if there is none.

    Raises:
        ValueError: neither is given.
        BusError: the broker cannot be reached or has no such stream.
    """
    if last is not None:
        return await bus.last(last)
    if stream is None or sequence is None:
        raise ValueError("give a stream and a sequence, or a subject")
    return await bus.get(stream, sequence)


def main_stdin(source: BinaryIO, out: TextIO, *, as_json: bool, show_tokens: bool) -> int:
    """Show the one payload on a binary stream; returns the exit code."""
    return show(source.read(MAX_INPUT_BYTES), out, as_json=as_json, show_tokens=show_tokens)


def show(data: bytes, out: TextIO, *, as_json: bool, show_tokens: bool) -> int:
    """Print a payload; FAILED, with the reason, when it is not a message of ours."""
    try:
        print((describe_json if as_json else describe)(data, show_tokens), file=out)
    except WireError as error:
        print(f"not a valid message: {error}", file=out)
        return ExitCode.FAILED
    return ExitCode.OK
