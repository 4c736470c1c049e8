"""What engines that go down say about a draft. Pure.

On the canary it is the draft's fault: it is new, and nothing speaks for it. After
that it may be: a draft that passed its canary on live figures (proven) is not condemned by one engine that
goes down once, because engines go down for other reasons too. It is rolled back when one goes down again, or
when more than watch_max_downs of them did, while it is rolled out or watched. A draft that is not proven is
rolled back at once. An engine that was down before is nobody's fault; whoever is not up is not waited for.

Outages are noted in FleetState, by node and since when, so that a new leader does not count one twice.
"""

from collections.abc import Sequence
from dataclasses import replace

from tide_daemon.policy.events import FleetState
from tide_daemon.policy.node_view import NodeView
from tide_daemon.policy.settings import PolicySettings


def new_downs(fleet: FleetState, nodes: Sequence[NodeView]) -> list[NodeView]:
    """Nodes whose engine went down in this stage and that are not noted yet, or not for this outage."""
    return [
        view
        for view in nodes
        if view.alive
        and view.down_since is not None
        and view.down_since >= fleet.since
        and (view.name, view.down_since) not in fleet.downs
    ]


def condemned(
    fleet: FleetState, nodes: Sequence[NodeView], settings: PolicySettings
) -> tuple[str, dict[str, float]] | None:
    """(reason, numbers) if engines went down in a way that speaks against the draft."""
    new = new_downs(fleet, nodes)
    if not new:
        return None
    before = {name for name, _ in fleet.downs}
    first, version = new[0].name, fleet.serving_version
    numbers = {"num_downs": float(len(fleet.downs) + len(new))}
    if not fleet.proven:
        return f"the engine of {first} went down under version {version}, which is not proven", numbers
    again = [view.name for view in new if view.name in before]
    if again:
        return f"the engine of {again[0]} went down again under version {version}", numbers
    if len(before) + len(new) > settings.watch_max_downs:
        return f"{len(before) + len(new)} engines went down under version {version}", numbers
    return None


def with_noted(fleet: FleetState, nodes: Sequence[NodeView]) -> tuple[FleetState, str, dict[str, float]] | None:
    """(the state with new outages noted, reason, numbers); None when there is nothing to note."""
    new = new_downs(fleet, nodes)
    if not new:
        return None
    noted = (*fleet.downs, *((view.name, view.down_since) for view in new if view.down_since is not None))
    names = ", ".join(view.name for view in new)
    reason = f"the engine of {names} went down under version {fleet.serving_version}: once is no reason to roll back"
    return replace(fleet, downs=noted), reason, {"num_downs": float(len(noted))}
