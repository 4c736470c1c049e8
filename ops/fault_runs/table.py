"""Every fault: its name, what is done, what must hold besides what holds for all of them.

For all of them: nobody repairs anything but what the row says was broken; afterwards every role is ready, somebody
leads, the engine runs the draft that is desired, requests are answered and new samples arrive; nothing that was
acknowledged is lost, nothing is applied twice, and pages and metrics said what was wrong. No client sees an error
unless the row says that clients may.

The function of a row is named as it is, in the module of its family.
"""

import importlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

FAMILIES = ("server_node", "broker", "trainer", "controller", "data", "load")


@dataclass(frozen=True, slots=True)
class Fault:
    """One row.

    Attributes:
        family: module of its function.
        clients_may_fail: requests that are in flight cannot be saved, or the row is about what they are refused.
        needs: "sglang" for rows that make no sense with a modelled engine, "mount" for a small file system, "openssl"
            for certificates.
        brokers: other ones than a single nats-server, see deployed.py; such a row gets a system of its own.
        recovers_within_s: limit; two busy cores take long to start processes.
    """

    name: str
    family: str
    done: str
    holds: str
    clients_may_fail: bool = False
    needs: frozenset[str] = frozenset()
    recovers_within_s: float = 120.0
    brokers: str = ""

    @property
    def function(self) -> str:
        """Name of its function."""
        return self.name.replace("-", "_")

    def inflict(self) -> Callable[[Any], Awaitable[None]]:
        """The function: takes a run.Inflicting."""
        found: Callable[[Any], Awaitable[None]] = getattr(
            importlib.import_module(f"fault_runs.{self.family}"), self.function
        )
        return found


_SGLANG = frozenset({"sglang"})
_MOUNT = frozenset({"mount"})
_OPENSSL = frozenset({"openssl"})

FAULTS: tuple[Fault, ...] = (
    # What is killed, one at a time.
    Fault(
        "sglang-killed",
        "server_node",
        "kill -9 of SGLang's first process",
        "it is started again and gets the desired draft once; the daemons live on",
        clients_may_fail=True,
        needs=_SGLANG,
        recovers_within_s=300.0,
    ),
    Fault(
        "server-daemon-killed",
        "server_node",
        "kill -9 of the server daemon; started again as systemd would",
        "SGLang serves on and is adopted: same process, same draft, no second swap",
    ),
    Fault(
        "trainer-killed",
        "trainer",
        "kill -9 of the trainer daemon; started again",
        "its store holds every sample that it acknowledged",
    ),
    Fault(
        "controller-killed",
        "controller",
        "kill -9 of the controller; started again",
        "the successor leads with a higher token and applies nothing anew",
    ),
    Fault(
        "broker-killed",
        "broker",
        "kill -9 of nats-server; started again after 10 s",
        "requests go on meanwhile; drafts and decisions are all there; what came in the last 0.1 s before may be "
        "missing from the stream of samples (topology.py, persist_async) and is counted as unacknowledged",
    ),
    # The broker.
    Fault("broker-restarted", "broker", "SIGTERM, started again at once", "every reader goes on where it was"),
    Fault(
        "broker-frozen-60s",
        "broker",
        "SIGSTOP for 60 s",
        "its silence is noticed by pings; requests go on meanwhile",
    ),
    Fault(
        "broker-unreachable-5min",
        "broker",
        "every role's packets vanish for 5 minutes, both ways",
        "requests go on; chunks that find the outbox full stay in the ring, which drops the newest and counts them",
    ),
    Fault(
        "broker-store-full",
        "broker",
        "the draft stream is given no more room, and a candidate is published",
        "the trainer says so and publishes it once there is room; the broker's streams stay whole",
    ),
    Fault(
        "broker-disk-full",
        "broker",
        "the file system of the broker's store is filled up for 20 s; then freed and the broker started again",
        "nothing that was acknowledged before is missing",
        needs=_MOUNT,
    ),
    Fault(
        "broker-max-payload-lowered",
        "broker",
        "max_payload goes from 1 MiB to 64 KiB by a reload",
        "chunks are cut to the new size; none is lost for being too large",
    ),
    Fault(
        "broker-permission-revoked",
        "broker",
        "by a reload the server node may not publish samples any more, and 20 s later it may again",
        "it says which subject is denied; reports still come",
    ),
    # The server node.
    Fault(
        "sglang-hung",
        "server_node",
        "SIGSTOP of all processes of SGLang, for good",
        "it is found silent, ended and started again",
        clients_may_fail=True,
        needs=_SGLANG,
        recovers_within_s=400.0,
    ),
    Fault(
        "ring-reader-frozen",
        "server_node",
        "SIGSTOP of the server daemon for 30 s",
        "requests do not notice; the ring takes what it can",
    ),
    Fault(
        "shared-memory-left-over",
        "server_node",
        "kill -9 of SGLang and its daemon at once, and a ring of another, dead writer lies there",
        "the rings of the dead are removed; a new SGLang gets the desired draft",
        clients_may_fail=True,
        needs=_SGLANG,
        recovers_within_s=300.0,
    ),
    Fault(
        "port-taken",
        "server_node",
        "SGLang is killed and another program listens at its port until 20 s after the daemon has said so",
        "the daemon says why SGLang does not start and starts it once the port is free",
        clients_may_fail=True,
        needs=_SGLANG,
        recovers_within_s=400.0,
    ),
    # The trainer.
    Fault(
        "trainer-killed-in-fetch",
        "trainer",
        "kill -9 as a chunk arrives that it has not acknowledged",
        "the chunk comes again and is stored once",
    ),
    Fault(
        "trainer-worker-killed-in-step",
        "trainer",
        "kill -9 of the training process between two optimizer steps",
        "another one goes on from the checkpoint; the round is published once",
        recovers_within_s=300.0,
    ),
    Fault(
        "trainer-killed-in-step",
        "trainer",
        "kill -9 of the trainer daemon within a round; started again",
        "the round goes on and is published once",
        recovers_within_s=300.0,
    ),
    Fault(
        "trainer-killed-in-parts",
        "trainer",
        "kill -9 as it sends the second part of a draft",
        "the same version is completed with the same content; a reader never saw half of it",
        recovers_within_s=300.0,
    ),
    Fault(
        "trainer-killed-before-manifest",
        "trainer",
        "kill -9 when every part is there and the manifest is about to be sent",
        "the manifest follows after the restart, under the same number",
        recovers_within_s=300.0,
    ),
    Fault(
        "trainer-out-of-memory",
        "trainer",
        "the training process may allocate nothing more (RLIMIT_AS) in the middle of a round",
        "the daemon and its store live on; the round is taken up by another process",
        recovers_within_s=300.0,
    ),
    Fault(
        "trainer-disk-full",
        "trainer",
        "the file system of the trainer's state is filled up for 20 s",
        "it acknowledges nothing meanwhile and says why; afterwards everything is stored",
        needs=_MOUNT,
    ),
    Fault(
        "trainer-nan-loss",
        "trainer",
        "samples whose states are finite and whose squares are not, and rounds are asked for",
        "they are refused and counted; a round is trained, and its loss is finite",
        recovers_within_s=300.0,
    ),
    Fault(
        "trainer-clock-jumps-a-day",
        "trainer",
        "the trainer's wall clock jumps a day ahead, and back after 20 s",
        "nothing that is younger than the retention limit is deleted, reports are still taken",
    ),
    Fault(
        "two-trainers-one-name",
        "trainer",
        "a second trainer with the same name, on other files, until both have published a draft",
        "chunks go to one of the two; no version has two contents",
    ),
    # The controller.
    Fault(
        "controller-frozen",
        "controller",
        "SIGSTOP until a second controller, which stands by, leads",
        "the second one leads; what the first one writes when it wakes up is refused",
    ),
    Fault(
        "two-controllers",
        "controller",
        "a second controller is started, and the first one is killed",
        "one leads at a time; the second takes over without a gap in the journal",
    ),
    Fault(
        "controller-cut-off-with-lease",
        "controller",
        "the leader's packets are held back until another one leads, then all let through at once",
        "its late writes are refused: no decision is taken twice",
    ),
    # Hostile or damaged data.
    Fault(
        "bits-flipped-in-every-field",
        "data",
        "of every kind of message one copy for each byte of prefix, body and tail, with one bit flipped, on its "
        "own subject",
        "each is refused, counted where it is counted, and nothing else happens",
    ),
    Fault(
        "valid-envelope-wrong-fields",
        "data",
        "of every kind of message, each field in turn replaced by a value of another type or out of range, with "
        "valid checksums",
        "each is refused; nothing else happens",
    ),
    Fault(
        "parts-truncated-duplicated-reordered",
        "data",
        "three drafts whose parts are cut short, sent twice, and sent in reverse order; all with scores that pass",
        "only whole content is ever run: the first is rolled back or never runs, the others run",
        recovers_within_s=240.0,
    ),
    Fault("chunk-of-another-model", "data", "chunks of another model on this model's subject", "refused and counted"),
    Fault("chunk-of-other-layers", "data", "chunks of other layers", "refused and counted"),
    Fault("chunk-of-another-vocabulary", "data", "chunks of another vocabulary", "refused and counted"),
    Fault("old-schema", "data", "messages of wire version 0, and of version 2", "refused with words on the update"),
    Fault(
        "manifest-without-base",
        "data",
        "a delta whose base was never published, with scores that pass",
        "it never runs; the fleet goes back to what was served",
        recovers_within_s=240.0,
    ),
    Fault(
        "draft-loads-but-is-wrong",
        "data",
        "a whole draft of random weights whose scores say that it is good",
        "requests are answered as before; it costs time for a moment at most: switched off or rolled back",
        needs=_SGLANG,
        recovers_within_s=300.0,
    ),
    Fault(
        "malicious-size",
        "data",
        "prefixes that claim up to 4 GiB, msgpack lengths of 4 billion",
        "refused before anything is allocated: no process grows by more than 64 MiB",
    ),
    Fault(
        "compression-bomb",
        "data",
        "frames of a few KB that unpack to 1 GiB, with and without a stated size",
        "refused before they are unpacked: no process grows by more than 64 MiB",
    ),
    # Load.
    Fault("small-requests-10000", "load", "10,000 requests of two tokens, 32 at a time", "all answered", needs=_SGLANG),
    Fault("requests-500-at-once", "load", "500 requests at the same moment", "all answered", needs=_SGLANG),
    Fault(
        "prompts-at-the-context-limit",
        "load",
        "prompts that just fit, of the whole context's length, and of four times that",
        "those that fit are answered, others refused with a message; nothing else happens",
        needs=_SGLANG,
    ),
    Fault(
        "clients-vanish-mid-stream",
        "load",
        "50 streams whose clients close the connection after the second piece",
        "their requests end; no row is lost for others; nothing stays running",
        needs=_SGLANG,
    ),
    Fault(
        "trainer-slow",
        "load",
        "SIGSTOP of the trainer until the stream of samples is over its limit",
        "the oldest samples go, nothing else is held up",
    ),
    Fault(
        "trainer-away-for-an-hour",
        "load",
        "the trainer is stopped for an hour, or for --away seconds",
        "requests go on; the stream keeps its bounds; the trainer takes up what is left",
    ),
    # What needs brokers of its own.
    Fault(
        "cluster-leader-lost",
        "broker",
        "of three brokers the one that leads all streams, and has the trainer's connection, is killed",
        "requests go on; others lead and the roles go on by themselves, with two of three",
        needs=_OPENSSL,
        brokers="cluster",
    ),
    Fault(
        "certificate-expired",
        "broker",
        "the broker comes back with a certificate that has expired; 20 s later with a valid one",
        "the roles refuse it, say why, and come back by themselves",
        needs=_OPENSSL,
        brokers="tls",
    ),
)


def named(names: list[str]) -> list[Fault]:
    """Rows by their names, or all rows of a family.

    Raises:
        ValueError: there is no such row.
    """
    known = {fault.name: [fault] for fault in FAULTS}
    known |= {family: [fault for fault in FAULTS if fault.family == family] for family in FAMILIES}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"no such fault: {', '.join(unknown)}")
    return [fault for name in names for fault in known[name]]
