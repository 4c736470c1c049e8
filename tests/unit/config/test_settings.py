"""The definitions themselves: every setting is complete, consistent, and agrees with the component it is for."""

import dataclasses
import tomllib

import pytest

from tide_daemon.config import show
from tide_daemon.config.fields import Setting, SettingError
from tide_daemon.config.learning_sections import ControllerConfig, TrainerConfig
from tide_daemon.config.sections import ROLES, SECTION_CLASSES, SECTION_ROLES, Config, all_settings
from tide_daemon.policy.settings import PolicySettings
from tide_daemon.trainer.settings import TrainerSettings

SETTINGS = list(all_settings())


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.key)
def test_every_default_is_allowed(setting: Setting) -> None:
    """A default passes its own validation and says what it means; quantities name their unit."""
    assert setting.validate("" if setting.default is None else setting.default) == setting.default
    assert setting.rules.meaning.endswith("."), setting.key
    for suffix, unit in (("_s", "s"), ("_bytes", "bytes"), ("_tokens", "tokens")):
        if setting.name.endswith(suffix):
            assert setting.rules.unit == unit


@pytest.mark.parametrize("setting", [s for s in SETTINGS if s.rules.minimum is not None], ids=lambda s: s.key)
def test_ranges_are_inclusive_and_hold(setting: Setting) -> None:
    """The ends of a range are allowed, what lies beyond is refused."""
    low, high = setting.rules.minimum, setting.rules.maximum
    assert low is not None
    kind = float if setting.annotation is float else int
    wrap = (lambda value: [value]) if str(setting.annotation).startswith("tuple") else (lambda value: value)
    setting.validate(wrap(kind(low)))
    with pytest.raises(SettingError):
        setting.validate(wrap(kind(low - 1)))
    if high is not None:
        setting.validate(wrap(kind(high)))
        with pytest.raises(SettingError):
            setting.validate(wrap(kind(high + 1)))


def test_every_section_says_who_reads_it() -> None:
    """Roles are stated for each section and each is a real one."""
    assert set(SECTION_ROLES) == set(SECTION_CLASSES)
    assert {role for roles in SECTION_ROLES.values() for role in roles} == set(ROLES)


def test_the_reference_is_the_defaults() -> None:
    """Uncommenting every line of the reference gives a valid file that changes nothing."""
    text = show.reference()
    assert all(set(table) == set() for table in tomllib.loads(text).values())
    names = {setting.name for setting in SETTINGS}
    uncommented = "\n".join(
        line.removeprefix("# ") if line.removeprefix("# ").split(" = ")[0] in names else line
        for line in text.splitlines()
    )
    parsed = tomllib.loads(uncommented)
    assert sum(len(table) for table in parsed.values()) == len(SETTINGS)
    for setting in SETTINGS:
        assert setting.validate(parsed[setting.section][setting.name]) == setting.default


@pytest.mark.parametrize(
    ("section", "component", "own"),
    [(ControllerConfig, PolicySettings, {"lease_ttl_s", "tick_s"}), (TrainerConfig, TrainerSettings, set())],
)
def test_sections_agree_with_their_components(section: type, component: type, own: set[str]) -> None:
    """A setting has the name and the default of the component's field that it is carried over to."""
    theirs = {field.name: field.default for field in dataclasses.fields(component)}
    ours = {field.name: field.default for field in dataclasses.fields(section)}
    assert set(ours) - own <= set(theirs)
    for name in set(ours) - own:
        assert (ours[name] or theirs[name]) == theirs[name], name


def test_a_config_without_arguments_is_all_defaults() -> None:
    """Config() can be used as it is in tests."""
    assert Config().status.port == 8790
