"""How a daemon ended, as systemd and scripts see it."""

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of `tide-daemon`; MEANINGS says when each is used."""

    OK = 0
    FAILED = 1
    USAGE = 2
    BROKER = 3
    ROLE = 4
    CUT_OFF = 5
    INSISTED = 130


MEANINGS: dict[ExitCode, str] = {
    ExitCode.OK: "stopped as asked",
    ExitCode.FAILED: "a subcommand found a problem, or an unexpected error (the log has it)",
    ExitCode.USAGE: "wrong arguments or configuration; a restart will not help",
    ExitCode.BROKER: "the broker cannot be used: no answer, too old, wrong streams (a server keeps trying)",
    ExitCode.ROLE: "a role cannot run here: a package is missing, or another daemon uses its files",
    ExitCode.CUT_OFF: "stopped as asked, but the drain deadline passed with work unfinished",
    ExitCode.INSISTED: "a second signal came: children were killed, nothing was drained",
}
