"""SGLang's API keys among its arguments: never to be printed or logged."""

from collections.abc import Sequence

KEY_FLAGS = ("--admin-api-key", "--api-key")


def without_keys(arguments: Sequence[str]) -> list[str]:
    """Arguments as they may be shown."""
    shown: list[str] = []
    is_key = False
    for argument in arguments:
        flag, equals, _ = argument.partition("=")
        if is_key:
            shown.append("***")
        else:
            shown.append(f"{flag}=***" if equals and flag in KEY_FLAGS else argument)
        is_key = not is_key and argument in KEY_FLAGS
    return shown
