"""Prometheus metrics, rendered from role snapshots at each scrape; nothing is counted here.

The tables are the contract with the roles: the key a role offers in its snapshot and the metric that
it becomes. A key that is missing is left out, so that a role may offer it later. Labels are bounded:
node, model and role; the reason of a refusal (a fixed set of the trainer); a dependency's name.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from tide_daemon.status.source import Source

CONTENT_TYPE = CONTENT_TYPE_LATEST


@dataclass(frozen=True, slots=True)
class Mapped:
    """One number of a snapshot and the metric it becomes; a counter's name ends in _total."""

    key: str
    name: str
    help: str

    @property
    def is_counter(self) -> bool:
        """Counters only grow while the process that counts lives."""
        return self.name.endswith("_total")


ROLE_METRICS: dict[str, tuple[Mapped, ...]] = {
    "server": (
        Mapped("draft_version", "tide_draft_version", "Draft that the engine runs, read back from it; 0 for none."),
        Mapped("desired_draft_version", "tide_desired_draft_version", "Draft that the controller wants to run."),
        Mapped("accept_length", "tide_accept_length", "Tokens a verify step, bonus included; absent if idle for 60 s."),
        Mapped("tokens_per_s", "tide_generated_tokens_per_second", "Tokens emitted a second, last report."),
        Mapped("decode_tokens_per_s", "tide_decode_tokens_per_second", "Tokens a second of steps, by the cost model."),
        Mapped(
            "plain_tokens_per_s", "tide_plain_tokens_per_second", "What plain decoding would give, by the same model."
        ),
        Mapped("of_plain", "tide_of_plain_ratio", "The former over the latter; below 1 speculation costs time."),
        Mapped("num_running", "tide_running_requests", "Requests in the running batch."),
        Mapped("num_steps", "tide_draft_steps", "Drafted tokens a step at the present batch size; 0: plain decoding."),
        Mapped("collecting", "tide_collecting", "1 while hidden states are captured."),
        Mapped("rows_written", "tide_rows_written_total", "Rows that the tap put into the ring."),
        Mapped("rows_dropped", "tide_rows_dropped_total", "Rows that found the ring full."),
        Mapped("rows_published", "tide_rows_published_total", "Rows handed to the broker."),
        Mapped("bytes_published", "tide_published_bytes_total", "Bytes of chunks handed to the broker."),
        Mapped("requests_published", "tide_published_requests_total", "Requests of which samples left the node."),
        Mapped("chunks_kept", "tide_chunks_kept_total", "Chunks kept back: excluded workloads, forgotten requests."),
        Mapped("chunks_waiting", "tide_chunks_waiting", "Chunks that the broker has not acknowledged yet."),
        Mapped(
            "chunks_dropped",
            "tide_chunks_dropped_total",
            "Chunks given up: not to be encoded, or the broker refused them.",
        ),
        Mapped("requests_opted_out", "tide_requests_opted_out_total", "Requests that asked not to be captured."),
        Mapped("num_swaps", "tide_swaps_total", "Drafts swapped in."),
        Mapped("engine_starts", "tide_engine_starts_total", "Starts of the engine process."),
        Mapped("applied_generation", "tide_applied_generation", "Generation of the desired state in force."),
    ),
    "trainer": (
        Mapped("store_bytes", "tide_store_bytes", "Size of the sample store."),
        Mapped("num_requests", "tide_store_requests", "Requests in the sample store."),
        Mapped("num_tokens", "tide_store_tokens", "Response tokens in the sample store."),
        Mapped("num_heldout", "tide_heldout_requests", "Held-out requests in the sample store."),
        Mapped("new_tokens", "tide_new_tokens", "Response tokens stored since the last round began."),
        Mapped("round", "tide_round", "Number of the running or last training round."),
        Mapped("step", "tide_round_step", "Optimizer step within the round."),
        Mapped("num_steps_total", "tide_round_steps", "Optimizer steps that the round will have."),
        Mapped("loss", "tide_training_loss", "Loss of the last optimizer steps, nats."),
        Mapped("left_s", "tide_round_left_seconds", "Time that the running round still takes, as far as can be told."),
        Mapped("requests_forgotten", "tide_requests_forgotten_total", "Requests whose samples were erased on demand."),
        Mapped("candidates_published", "tide_candidates_published_total", "Candidate drafts published."),
    ),
    "controller": (
        Mapped("leading", "tide_leading", "1 while this controller holds the lease."),
        Mapped("fencing_token", "tide_fencing_token", "Token of the lease that was held last."),
        Mapped("num_nodes", "tide_server_nodes", "Server nodes heard of lately."),
        Mapped("num_trainers", "tide_trainers", "Trainers heard of lately."),
        Mapped("serving_version", "tide_serving_version", "Draft version that the fleet shall run."),
        Mapped("pinned", "tide_pinned", "1 while an operator wants nothing promoted."),
        Mapped("decisions_total", "tide_decisions_total", "Decisions taken."),
    ),
}


class _SnapshotCollector(Collector):
    """Turns one snapshot into metric families."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def collect(self) -> Iterator[Metric]:
        """Called by the registry at each scrape."""
        snapshot, health = self._source.snapshot(), self._source.health()
        daemon = _mapping(snapshot.get("daemon"))
        node, model = str(daemon.get("node", "")), str(daemon.get("model", ""))
        build = GaugeMetricFamily("tide_build_info", "Always 1; the version is in the label.", labels=["version"])
        build.add_metric([str(daemon.get("version", ""))], 1)
        yield build
        yield _gauge("tide_start_time_seconds", "Unix time at which the daemon started.", daemon.get("started_at"))
        bus = _mapping(snapshot.get("bus"))
        yield _gauge("tide_bus_connected", "1 while connected to the broker.", bus.get("connected"))
        losses = CounterMetricFamily("tide_bus_losses", "Times the broker was lost, for however short.")
        losses.add_metric([], _number(bus.get("num_losses")) or 0.0)
        yield losses
        yield _gauge(
            "tide_stuck_loops",
            "Loops of roles that do not come round; systemd's watchdog ends the daemon then.",
            daemon.get("stuck_loops"),
        )
        yield _gauge("tide_ready", "1 while every role can do its work.", self._source.ready())
        dependencies = GaugeMetricFamily(
            "tide_dependency_ok", "1 while a dependency is well; see /readyz for words.", labels=["dependency"]
        )
        for name, words in health.items():
            dependencies.add_metric([name], float(words == "ok"))
        yield dependencies
        roles = _mapping(snapshot.get("roles"))
        failures = CounterMetricFamily("tide_role_failures", "Failed runs of a role.", labels=["node", "role"])
        for role, view in roles.items():
            failures.add_metric([node, role], _number(_mapping(view).get("num_failures")) or 0.0)
        yield failures
        for role, view in roles.items():
            yield from _role_metrics(role, _mapping(_mapping(view).get("snapshot")), node, model)


def make_registry(source: Source) -> CollectorRegistry:
    """A registry of its own, so that nothing of other libraries is exposed by accident."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_SnapshotCollector(source))
    return registry


def render(registry: CollectorRegistry) -> bytes:
    """The text form that Prometheus reads."""
    return generate_latest(registry)


def _role_metrics(role: str, view: Mapping[str, object], node: str, model: str) -> Iterator[Metric]:
    for mapped in ROLE_METRICS.get(role, ()):
        number = _number(view.get(mapped.key))
        if number is None:
            continue
        family: Metric
        if mapped.is_counter:
            family = CounterMetricFamily(mapped.name.removesuffix("_total"), mapped.help, labels=["node", "model"])
        else:
            family = GaugeMetricFamily(mapped.name, mapped.help, labels=["node", "model"])
        family.add_metric([node, model], number)
        yield family
    refused = _mapping(view.get("refused"))
    if refused:
        chunks = CounterMetricFamily("tide_refused", "What was not stored, by reason.", labels=["node", "reason"])
        for reason, count in sorted(refused.items()):
            chunks.add_metric([node, reason], _number(count) or 0.0)
        yield chunks


def _gauge(name: str, help: str, value: object) -> Metric:
    return GaugeMetricFamily(name, help, value=_number(value))


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, bool | int | float) else None
