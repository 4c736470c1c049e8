"""The module-level __getattr__ that all modules of this stand-in share."""

from collections.abc import Callable
from typing import Any


def names_of(module: str) -> Callable[[str], Any]:
    """Return a __getattr__ whose attributes can be imported but not called.

    Private names raise AttributeError, as import machinery and `hasattr` probes expect.
    """

    def absent(name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)

        def refuse(*_args: Any, **_kwargs: Any) -> Any:
            raise NotImplementedError(f"{module}.{name}: image models need the real torchvision, this is a stand-in")

        return refuse

    return absent
