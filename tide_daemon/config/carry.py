"""Carries values from a configuration section to a component's own settings record, by name.

The sections use the components' field names, so one rule serves all. A component's field without a
setting of that name keeps its default: it is not for operators.
"""

import dataclasses
from typing import Any, TypeVar

T = TypeVar("T")


def carry_over(cls: type[T], *sections: object, **given: Any) -> T:
    """An instance of the dataclass `cls` from `given` and from equally named fields of `sections`.

    Given values win over sections, earlier sections over later ones; a section's None counts as absent.

    Raises:
        TypeError: a field without default is found nowhere.
    """
    values = dict(given)
    for section in sections:
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            value = getattr(section, field.name, None)
            if value is not None:
                values.setdefault(field.name, value)
    return cls(**values)
