"""The command line in this process: help, check, subcommands and how wrong words are answered."""

import tomllib

import pytest

from tide_daemon import cli
from tide_daemon.exit_codes import ExitCode

URL = ["--set", "bus.url=nats://127.0.0.1:4222"]


@pytest.fixture(autouse=True)
def no_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.environ", {"HOME": "/nowhere"})


def test_help_is_enough_to_begin(capsys: pytest.CaptureFixture[str]) -> None:
    """Roles, subcommands, signals and every exit code."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    for word in ("--role", "--check", "SIGTERM", *cli.SUBCOMMANDS, *(str(code.value) for code in ExitCode)):
        assert word in text


def test_check_prints_what_is_in_force(capsys: pytest.CaptureFixture[str]) -> None:
    """Values with their origin on stdout, warnings on stderr, nothing started."""
    assert cli.main(["--role", "controller", *URL, "--set", "trainer.nice=1", "--check"]) == ExitCode.OK
    output = capsys.readouterr()
    assert 'url = "nats://127.0.0.1:4222"' in output.out and "# flag --set" in output.out
    assert output.err.startswith("warning: trainer.nice")


def test_the_configuration_file_may_come_from_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """$TIDE_CONFIG, unless --config names one."""
    monkeypatch.setitem(__import__("os").environ, "TIDE_CONFIG", "/nowhere/tide.toml")
    assert cli.main(["--role", "controller", "--check"]) == ExitCode.USAGE
    assert "/nowhere/tide.toml" in capsys.readouterr().err


def test_all_problems_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """With their number, on stderr; exit code 2."""
    assert cli.main(["--role", "server,trainer", "--set", "log.level=loud"]) == ExitCode.USAGE
    error = capsys.readouterr().err
    assert error.startswith("tide-daemon: 3 problems:\n  log.level (flag --set)")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--role", "trainr"], "did you mean trainer?"),
        (["peke"], "did you mean peek?"),
        (["frobnicate"], "there is no such subcommand"),
    ],
)
def test_typing_errors_are_answered_with_the_closest(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2."""
    assert cli.main(words) == ExitCode.USAGE
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--rol", "all"], ["--role"], ["--check"]])
def test_wrong_usage_ends_with_2(words: list[str]) -> None:
    """As argparse does; long options are not guessed."""
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == ExitCode.USAGE


def test_the_reference_can_be_used_as_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    """`tide-daemon config --reference` prints TOML."""
    assert cli.main(["config", "--reference"]) == ExitCode.OK
    assert set(tomllib.loads(capsys.readouterr().out)) >= {"node", "bus", "server", "trainer", "controller"}


def test_version_names_what_figures_depend_on(capsys: pytest.CaptureFixture[str]) -> None:
    """This package, Python, broker client, torch, sglang."""
    assert cli.main(["version"]) == ExitCode.OK
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} >= {"tide-daemon", "python", "nats-py"}
