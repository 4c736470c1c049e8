"""Loading: precedence, origins, and every problem in one message."""

from pathlib import Path

import pytest

from tide_daemon.config import ROLES, load, parse_roles, show
from tide_daemon.errors import ConfigError

URL = {"TIDE_BUS_URL": "nats://127.0.0.1:4222"}


def write(folder: Path, text: str) -> Path:
    path = folder / "tide.toml"
    path.write_text(text)
    return path


def problems(
    roles: tuple[str, ...], path: Path | None = None, environ: dict[str, str] | None = None, *sets: str
) -> str:
    with pytest.raises(ConfigError) as caught:
        load(roles, path, environ, sets)
    return str(caught.value)


def test_later_sources_win_and_origins_say_so(tmp_path: Path) -> None:
    """A flag beats the environment, which beats the file, which beats the default."""
    path = write(
        tmp_path, '[status]\nport = 1\nhost = "::1"\n[log]\nlevel = "debug"\n[bus]\nurl = "nats://127.0.0.1:1"\n'
    )
    result = load(("controller",), path, {"TIDE_STATUS_PORT": "2", "TIDE_LOG_LEVEL": "error"}, ["status.port=3"])
    assert (result.config.status.port, result.config.status.host, result.config.log.level) == (3, "::1", "error")
    assert result.origins["status.port"] == "flag --set"
    assert result.origins["log.level"] == "environment TIDE_LOG_LEVEL"
    assert result.origins["status.host"] == f"file {path}"
    assert "log.format" not in result.origins


def test_a_trainer_leaves_the_gpu_to_the_server_beside_it(tmp_path: Path) -> None:
    """Unless somebody says otherwise; alone it looks for one itself."""

    def device(roles: tuple[str, ...], *sets: str) -> str:
        # A folder of the target: the server needs one.
        loaded = load(roles, None, URL, [f"server.model_path={tmp_path}", "node.model=m", *sets])
        return loaded.config.trainer.device

    assert device(("trainer",)) == "auto"
    assert device(("trainer", "server")) == "cpu"
    assert device(("trainer", "server"), "trainer.device=cuda") == "cuda"


def test_every_problem_is_in_one_message(tmp_path: Path) -> None:
    """Sections, names, types, ranges, choices and rules between settings are reported together."""
    path = write(
        tmp_path,
        '[trainr]\nx = 1\n[bus]\nurls = "nats://127.0.0.1:1"\n[status]\nport = "80"\nhost = "0.0.0.0"\n'
        '[capture]\ncodec = "zip"\nring_bytes = 1\n[controller]\nema_short = 0.99\nema_long = 0.9\n',
    )
    message = problems(ROLES, path, {"TIDE_DRAFT_MAX_STEP": "3", "TIDE_TRAINER_NICE": "x"}, "draft.aux_layer_ids=3,1")
    for expected in (
        "[trainr] (file",
        "did you mean trainer?",
        "did you mean bus.url?",
        "status.port (file",
        "'80' is not an integer",
        "status.host: 0.0.0.0 can be reached from other machines",
        "capture.codec",
        "one of bf16, bf16-planes, int8-block64",
        "capture.ring_bytes",
        "1 bytes is outside the range: 4_194_304 to 68_719_476_736 bytes",
        "controller.ema_long: must be above",
        "did you mean TIDE_DRAFT_MAX_STEPS?",
        "trainer.nice (environment TIDE_TRAINER_NICE): 'x' is not an integer",
        "EAGLE-3 takes three layers, got 2",
        "must be ascending",
        "server.model_path: the role server needs it",
    ):
        assert expected in message


def test_a_failed_setting_is_reported_once() -> None:
    """A wrong address is not reported as a missing one too."""
    assert problems(("controller",), None, {"TIDE_BUS_URL": "http://x"}).count("bus.url") == 1


def test_a_name_from_another_section_is_recognised() -> None:
    """The right name in the wrong section is pointed to."""
    assert "did you mean node.state_dir?" in problems(("controller",), None, URL, "server.state_dir=/x")


@pytest.mark.parametrize("text", ["a = ", "[status]\nport = 1\n[status]\nport = 2\n", "\x00"])
def test_a_file_that_is_not_toml_is_named(tmp_path: Path, text: str) -> None:
    """The parser's own words are passed on, with the file's name."""
    assert "is not valid TOML" in problems(("controller",), write(tmp_path, text))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """So is a folder in its place."""
    assert "No such file" in problems(("controller",), tmp_path / "nothing.toml")
    assert "directory" in problems(("controller",), tmp_path)


def test_a_section_must_be_a_table(tmp_path: Path) -> None:
    """`status = 1` is refused in words."""
    assert "must be a section, [status]" in problems(("controller",), write(tmp_path, "status = 1\n"), URL)


def test_text_values_are_read_as_their_type() -> None:
    """Lists are split as a shell would, or at commas; booleans have four spellings; numbers keep their type."""
    result = load(
        ("server",),
        None,
        URL,
        [
            "server.model_path=~/m",
            "server.arguments=--a 'b c' --d",
            "draft.aux_layer_ids=2, 15 27",
            "status.enabled=0",
            "capture.sample_rate=1",
        ],
    )
    assert result.config.server.arguments == ("--a", "b c", "--d")
    assert result.config.draft.aux_layer_ids == (2, 15, 27)
    assert result.config.status.enabled is False
    assert isinstance(result.config.capture.sample_rate, float)
    assert result.config.server.model_path == Path("~/m").expanduser()


@pytest.mark.parametrize("value", ["nan", "inf", "1e999", "", "one"])
def test_numbers_must_be_finite(value: str) -> None:
    """No spelling of infinity or nonsense passes a range."""
    assert "capture.sample_rate" in problems(
        ("server",), None, URL, f"capture.sample_rate={value}", "server.model_path=/x"
    )


def test_settings_of_other_roles_warn() -> None:
    """What nothing will read is said, with its origin; what is read is not."""
    result = load(
        ("controller",), None, {**URL, "TIDE_TRAINER_NICE": "3"}, ["controller.tick_s=2", "draft.max_steps=4"]
    )
    assert result.warnings == (
        "trainer.nice (environment TIDE_TRAINER_NICE) has no effect: only the role trainer reads it, "
        "and the chosen ones are controller",
    )


def test_settings_without_effect_in_this_mode_warn() -> None:
    """A mode that ignores a setting is named."""
    result = load(ROLES, None, URL, ["server.mode=modelled", "server.arguments=--x", "bus.embedded_port=1"])
    assert [warning.split(" ")[0] for warning in result.warnings] == ["bus.embedded_port", "server.arguments"]
    words = ["server.mode=attach", "server.arguments=--api-key k3y"]
    assert load(("server",), None, URL, [*words, "server.model_path=/x"]).warnings == ()


def test_only_all_roles_need_no_broker() -> None:
    """--role all starts a private server; anything else must be told where one is."""
    assert load(ROLES, None, {}, ["server.mode=modelled"]).config.bus.url == ""
    assert "bus.url: must name the NATS server" in problems(("trainer", "controller"))


def test_folders_follow_systemd_then_xdg(tmp_path: Path) -> None:
    """STATE_DIRECTORY and RUNTIME_DIRECTORY win over XDG; run_dir is under state_dir otherwise."""
    given = load(("controller",), None, {**URL, "STATE_DIRECTORY": "/var/lib/a:/b", "RUNTIME_DIRECTORY": "/run/a"})
    assert (given.config.node.state_dir, given.config.node.run_dir) == (Path("/var/lib/a"), Path("/run/a"))
    xdg = load(("controller",), None, {**URL, "XDG_STATE_HOME": str(tmp_path)})
    assert xdg.config.node.run_dir == tmp_path / "tide-daemon" / "run"
    assert xdg.origins["node.run_dir"] == "computed"


def test_the_host_name_becomes_a_valid_node_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Capitals, dots and underscores cannot stand in a subject."""
    monkeypatch.setattr("socket.gethostname", lambda: "Big_Box.example.org")
    assert load(("controller",), None, URL).config.node.name == "big-box-example-org"


def test_secrets_are_never_shown() -> None:
    """Neither --check nor an error message prints a token or a password."""
    token = "s3cret-s3cret-s3cret"
    result = load(
        ("controller",), None, {"TIDE_BUS_URL": f"nats://user:{token}@127.0.0.1:1", "TIDE_STATUS_TOKEN": token}
    )
    assert token not in show.resolved(result)
    keys = ["server.model_path=/x", "server.arguments=--api-key k3y --admin-api-key=k4y --tp 2"]
    text = show.resolved(load(("server",), None, URL, keys))
    assert "k3y" not in text and "k4y" not in text and '"--tp", "2"' in text
    short = problems(("controller",), None, {**URL, "TIDE_STATUS_TOKEN": "s3cret"})
    assert "s3cret" not in short and "16 to 256 printable characters" in short


@pytest.mark.parametrize(
    "url",
    [
        "http://anna:s3cret@10.0.0.1:1",
        "anna:s3cret@10.0.0.1:1",
        "nats://anna:s3 cret@10.0.0.1:1",
        "nats://anna:s3/cret@10.0.0.1:1",
        "nats://anna:s3@cret@10.0.0.1:1",
        "nats://anna:s3,cret@10.0.0.1:1",
    ],
)
def test_an_address_that_is_refused_is_told_without_its_password(url: str) -> None:
    """Whatever is wrong with it."""
    told = problems(("controller",), None, {"TIDE_BUS_URL": url})
    assert "bus.url" in told and "nats://" in told
    assert "s3" not in told and "cret" not in told


def test_addresses_are_shown_without_passwords() -> None:
    """--check, with several of them and with characters that an address should not hold."""
    url = "tls://anna:s3@cret@h1:1,tls://bert:s3/cret@h2:2"
    text = show.resolved(load(("controller",), None, {"TIDE_BUS_URL": url}))
    assert "tls://(hidden)@h1:1,tls://(hidden)@h2:2" in text and "cret" not in text and "s3" not in text


def test_check_prints_every_setting_once() -> None:
    """--check lists all of them with an origin."""
    text = show.resolved(load(("controller",), None, URL))
    assert "url = " in text and "# environment TIDE_BUS_URL" in text
    assert text.count(" # ") == len([line for line in text.splitlines() if " = " in line])


@pytest.mark.parametrize(
    ("text", "roles"),
    [
        ("all", ROLES),
        ("controller,server", ("server", "controller")),
        (" trainer ", ("trainer",)),
        ("all,server", ROLES),
    ],
)
def test_roles_are_put_in_start_order(text: str, roles: tuple[str, ...]) -> None:
    """However they are written."""
    assert parse_roles(text) == roles


@pytest.mark.parametrize(
    ("text", "expected"), [("trainr", "did you mean trainer?"), ("", "name one"), (",", "name one")]
)
def test_wrong_roles_are_refused(text: str, expected: str) -> None:
    """With the closest name."""
    with pytest.raises(ConfigError, match=expected.replace("?", r"\?")):
        parse_roles(text)


def test_tls_files_must_fit_together(tmp_path: Path) -> None:
    """Half a key pair, missing files, a plain address and two credentials are each named."""
    path = tmp_path / "ca.pem"
    path.write_text("")
    message = problems(
        ("controller",),
        None,
        URL,
        f"bus.tls_ca_file={path}",
        "bus.tls_cert_file=/nowhere.pem",
        f"bus.nkey_file={path}",
        f"bus.credentials_file={path}",
    )
    for expected in ("begins with tls://", "set both or none", "there is no file /nowhere.pem", "set only one of them"):
        assert expected in message
