"""One run of a scenario, under TIDE or under a fixed policy; everything else of both is the same."""

from tide_daemon.policy.events import NO_DRAFT, FleetState
from tide_daemon.simulate.fixed import Fixed
from tide_daemon.simulate.fleet import Fleet, Progress
from tide_daemon.simulate.leader import Leader
from tide_daemon.simulate.learning import Drafts
from tide_daemon.simulate.scenario import Scenario
from tide_daemon.simulate.server import ModelledServer
from tide_daemon.simulate.tally import Tally
from tide_daemon.simulate.traffic import Schedule
from tide_daemon.simulate.trainer import ModelledTrainer

PLAIN, STATIC, NEWEST = "plain", "static", "newest"


def run_tide(scenario: Scenario, progress: Progress | None = None, *, checked: bool = False) -> Tally:
    """The production policy. `checked`: its invariants are asserted after every event."""
    return _run(scenario, None, progress, checked=checked)


def run_fixed(scenario: Scenario, policy: str, num_steps: int, *, all_serve: bool = False) -> Tally:
    """PLAIN, STATIC or NEWEST with a fixed number of steps.

    Args:
        all_serve: with the devices that serve only when nothing is trained.
    """
    return _run(scenario, (policy, num_steps), None, all_serve=all_serve)


def _run(
    scenario: Scenario,
    fixed: tuple[str, int] | None,
    progress: Progress | None,
    *,
    checked: bool = False,
    all_serve: bool = False,
) -> Tally:
    schedule = Schedule(scenario.phases)
    tally = Tally(scenario, schedule)
    drafts = Drafts(scenario.workloads, scenario.learning, scenario.policy.max_steps)
    first = NO_DRAFT if scenario.first_draft is None else drafts.add(scenario.first_draft).version
    servers = [
        ModelledServer(f"{group.name}-{index:04d}", group, scenario, schedule, drafts, tally, counts=fixed is None)
        for group in scenario.servers
        for index in range(group.count)
        if all_serve or not group.only_without_training
    ]
    trainers = [
        ModelledTrainer(f"{group.name}-{index:04d}", group, scenario, drafts, tally)
        for group in scenario.trainers
        for index in range(group.count)
    ]
    tally.serving(0.0, first)
    director: Leader | Fixed
    if fixed is None:
        director = Leader(scenario.policy, _first_state(scenario, drafts, first), tally, checked=checked)
    else:
        policy, num_steps = fixed
        director = Fixed(
            scenario.policy,
            [server.name for server in servers],
            [trainer.name for trainer in trainers],
            tally,
            version=NO_DRAFT if policy == PLAIN else first,
            num_steps=num_steps,
            trains=policy == NEWEST,
        )
    Fleet(scenario, servers, trainers, director, tally).run(progress)
    return tally


def _first_state(scenario: Scenario, drafts: Drafts, first: int) -> FleetState | None:
    """What the journal holds at the start: the first draft, with its score on what it was trained on."""
    if first == NO_DRAFT or scenario.first_draft is None:
        return None
    total = sum(scenario.first_draft.values())
    steps = scenario.heldout_steps
    lengths = (drafts.accept_length(first, name, steps) * count for name, count in scenario.first_draft.items())
    return FleetState(
        serving_version=first,
        serving_digest=drafts.versions[first].digest,
        offline_accept_length=sum(lengths) / total if total > 0 else 1.0,
        offline_num_steps=steps,
        judged=(first,),
    )
