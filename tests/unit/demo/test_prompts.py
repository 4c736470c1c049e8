import json

import pytest
from demo_data.prompts import conversations

WHOLE = json.dumps([{"id": number, "conversations": [{"from": "human", "value": "hi"}]} for number in range(3)])


def test_whole_file() -> None:
    """Every object of a complete array is found, in order."""
    assert [c["id"] for c in conversations(WHOLE)] == [0, 1, 2]


@pytest.mark.parametrize("cut", range(1, len(WHOLE)))
def test_cut_off_anywhere(cut: int) -> None:
    """A file that is cut off at any place gives its complete objects and ends quietly."""
    found = [c["id"] for c in conversations(WHOLE[:cut])]
    assert found == [0, 1, 2][: len(found)]
    assert len(found) >= WHOLE[:cut].count("]}")


def test_pretty_printed_array() -> None:
    """White space between objects does not matter."""
    assert [c["id"] for c in conversations(json.dumps(json.loads(WHOLE), indent=2))] == [0, 1, 2]
