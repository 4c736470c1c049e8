"""What is wrong with this daemon and what to do, from its own words in /readyz. Pure.

What is wrong with the fleet is said by the controller's own view, see roles/fleet_problems.py.
"""

from collections.abc import Mapping

_ADVICE = {
    "bus": (
        "Is nats-server up, does bus.url name it, and may this user log in? The daemon connects again by itself; "
        "serving goes on with the draft that is there.",
        "TideBrokerDisconnected",
    ),
    "run": ("The role is started again with a growing pause. Its log has the whole error.", "TideRoleFailing"),
    "engine": ("SGLang may load for minutes. If it goes down again and again, its own log says why.", "TideNotReady"),
    "desired_state": ("It is tried again. tide-daemon why --node NAME says what is asked.", "TideDraftNotApplied"),
    "target_rows": ("Trainers without the target's files wait for them. It is tried again.", "TideNotReady"),
    "store": ("Is the disk of node.state_dir full or read-only? Samples wait in the stream meanwhile.", "TideNotReady"),
    "training": ("It is tried again. The trainer's log has the whole story.", "TideTrainingStalled"),
    "lease": ("Can this controller write to the broker? Another one may lead meanwhile.", "TideNoLeader"),
}
"""By the last part of a dependency's name."""
_OTHERWISE = ("The daemon's log has more.", "TideNotReady")


def problems_of(health: Mapping[str, str]) -> list[dict[str, str]]:
    """A {"what", "do", "page"} for each dependency that is not well; the broker's own word comes once."""
    found: list[dict[str, str]] = []
    bus_is_away = health.get("bus", "ok") != "ok"
    for name, words in health.items():
        kind = name.rpartition(".")[2]
        if words == "ok" or (bus_is_away and kind in ("bus", "lease") and name != "bus"):
            continue
        if words.startswith("stuck for"):
            advice = ("Under systemd the watchdog ends and restarts the daemon.", "TideLoopStuck")
        else:
            advice = _ADVICE.get(kind, _OTHERWISE)
        found.append({"what": f"{name}: {words}", "do": advice[0], "page": advice[1]})
    return found
