"""One owner of a daemon's life: start order, signals, the drain deadline, stop order.

Start: locks, status endpoint, broker, roles (built before any runs, so that a missing package shows
at once). A server does not wait for the broker, see broker.py. Stop is the reverse. The status endpoint
comes first and goes last, so that a daemon that waits for its broker, or drains, can be asked what it
is doing.

    first SIGTERM or SIGINT   roles get node.drain_deadline_s to finish      exit 0, or 5 if cut off
    second                    children are killed, nothing is drained        exit 130
    SIGHUP                    the configuration is read again, see config/reload.py; refused whole or in force whole

systemd is told of all that, see service.py.

What a role does is not here, see roles/; how one is run again after a failure is in supervisor.py.
"""

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path

import structlog

import tide_daemon
from tide_daemon import log as logging_setup
from tide_daemon import signals
from tide_daemon.bus.port import Bus
from tide_daemon.clock import Clock, SystemClock
from tide_daemon.config.load import Resolved
from tide_daemon.config.reload import changed_settings
from tide_daemon.config.sections import Config
from tide_daemon.errors import BusError, ConfigError, TideError
from tide_daemon.exit_codes import ExitCode
from tide_daemon.locks import role_locks
from tide_daemon.notify import Notifier
from tide_daemon.roles.port import Role
from tide_daemon.service import ServiceLink
from tide_daemon.status.app import StatusServer, StatusSettings
from tide_daemon.supervisor import RoleRunner

log = structlog.get_logger()

OpenBus = Callable[[Resolved], AbstractAsyncContextManager[Bus]]
BuildRole = Callable[[str, Config, Bus], Role]
Reload = Callable[[], Resolved]
Reconfigure = Callable[[str, Role, Config], None]

CUT_OFF_GRACE_S = 5.0
"""What a cancelled role may take to kill its children before the process ends anyway."""


class Daemon:
    """One process with one or several roles. Run it once.

    Args:
        resolved: the checked configuration and the roles.
        open_bus: makes the bus (and starts the private server); closes it on exit. See broker.py.
        build_role: makes a role by name.
        reload: reads the configuration again, from where it came; None when it cannot be.
        reconfigure: has a role take over what may change while it runs.
        notifier: where the service manager listens.
    """

    def __init__(
        self,
        resolved: Resolved,
        open_bus: OpenBus,
        build_role: BuildRole,
        clock: Clock | None = None,
        *,
        reload: Reload | None = None,
        reconfigure: Reconfigure = lambda name, role, config: None,
        notifier: Notifier | None = None,
    ) -> None:
        self._resolved = resolved
        self._config = resolved.config
        self._open_bus = open_bus
        self._build_role = build_role
        self._clock = clock or SystemClock()
        self._reload = reload
        self._reconfigure = reconfigure
        self._role_names = resolved.roles
        self._started_at = time.time()
        self._stop = asyncio.Event()
        self._service = ServiceLink(notifier or Notifier(), self, self._stop)
        self._status: StatusServer | None = None
        self._reloaded = ""
        self._bus: Bus | None = None
        self._runners: dict[str, RoleRunner] = {}

    async def run(self) -> ExitCode:
        """Run until told to stop; never raises for what the exit codes cover."""
        with signals.handled(self._stop, self._on_hangup):
            service = asyncio.create_task(self._service.run(), name="service-manager")
            try:
                return await self._run()
            except ConfigError as error:
                log.error("configuration_refused", error=str(error))
                return ExitCode.USAGE
            except BusError as error:
                log.error("broker_unusable", error=str(error))
                return ExitCode.BROKER
            except (ImportError, TideError) as error:
                log.error("role_unusable", error=str(error))
                return ExitCode.ROLE
            finally:
                service.cancel()
                await asyncio.gather(service, return_exceptions=True)

    async def _run(self) -> ExitCode:
        node, status = self._config.node, self._config.status
        assert node.state_dir is not None and node.run_dir is not None, "the loader fills these in"
        for folder in (node.state_dir, node.run_dir):
            _make_private(folder)
        async with AsyncExitStack() as stack:
            stack.enter_context(role_locks(node.state_dir, self._role_names))
            if status.enabled:
                server = self._status = StatusServer(self, StatusSettings(status.host, status.port, status.token))
                await server.start()
                stack.push_async_callback(server.stop)
                log.info("status_endpoint_opened", url=f"http://{status.host}:{server.port}/")
            bus = await self._connect(stack)
            if bus is None:
                return ExitCode.OK
            return await self._run_roles(bus)

    async def _connect(self, stack: AsyncExitStack) -> Bus | None:
        """The connected bus, or None if we were told to stop while waiting for it."""
        opening = asyncio.create_task(stack.enter_async_context(self._open_bus(self._resolved)))
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait([opening, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not opening.done():
                return None
            self._bus = opening.result()
            return self._bus
        finally:
            for task in (opening, stopping):
                task.cancel()
            await asyncio.gather(opening, stopping, return_exceptions=True)

    async def _run_roles(self, bus: Bus) -> ExitCode:
        for name in self._role_names:
            runner = RoleRunner(name, self._builder(name, bus), self._clock, self._config.node.restart_backoff_max_s)
            try:
                runner.prepare()
            except ImportError as error:
                raise ImportError(_missing_package(name, error)) from error
            self._runners[name] = runner
        log.info("daemon_started", roles=list(self._role_names), version=tide_daemon.__version__, pid=os.getpid())
        tasks = [asyncio.create_task(runner.run(self._stop), name=name) for name, runner in self._runners.items()]
        try:
            await self._stop.wait()
        finally:
            finished = await self._drain(tasks)
        return ExitCode.OK if finished else ExitCode.CUT_OFF

    def _builder(self, name: str, bus: Bus) -> Callable[[], Role]:
        return lambda: self._build_role(name, self._config, bus)

    async def _drain(self, tasks: list[asyncio.Task[None]]) -> bool:
        """Wait for the roles to finish; True if all did within the deadline."""
        deadline_s = self._config.node.drain_deadline_s
        log.info("drain_started", deadline_s=deadline_s)
        _, unfinished = await asyncio.wait(tasks, timeout=deadline_s)
        if not unfinished:
            log.info("drain_finished")
            return True
        names = sorted(task.get_name() for task in unfinished)
        log.error("drain_deadline_passed", unfinished=names, deadline_s=deadline_s)
        for task in unfinished:
            task.cancel()
        _, stuck = await asyncio.wait(unfinished, timeout=CUT_OFF_GRACE_S)
        killed = signals.kill_descendants(os.getpid()) if stuck else 0
        if killed:
            log.error("children_killed", num_children=killed)
        return False

    def _on_hangup(self) -> None:
        """Take over a changed configuration, or say why not and go on with the old one."""
        self._service.reloading()
        try:
            if self._reload is None:
                raise ConfigError("this daemon cannot read its configuration again; restart it")
            resolved = self._reload()
            changed = changed_settings(self._resolved, resolved)
        except ConfigError as error:
            log.error("reload_refused", error=str(error))
            self._reloaded = f"reload refused: {error}"
        else:
            self._take_over(resolved)
            log.info("configuration_reloaded", changed=changed)
            self._reloaded = f"reloaded: {', '.join(changed) or 'nothing had changed'}"
        self._service.reloaded(self._reloaded)

    def _take_over(self, resolved: Resolved) -> None:
        self._resolved, config = resolved, resolved.config
        self._config = config
        logging_setup.configure(config.log.level, config.log.format)  # type: ignore[arg-type]  # the choices are checked
        if self._status is not None:
            self._status.change_token(config.status.token)
        for runner in self._runners.values():
            runner.reconfigure(lambda name, role: self._reconfigure(name, role, config))

    # What the status endpoint and the service manager see; see status/source.py and service.py.

    def snapshot(self) -> Mapping[str, object]:
        """Everything about this daemon as plain values."""
        return {
            "daemon": {
                "node": self._config.node.name,
                "model": self._config.node.model,
                "roles": list(self._role_names),
                "version": tide_daemon.__version__,
                "pid": os.getpid(),
                "started_at": self._started_at,
                "stopping": self._stop.is_set(),
                "reload": self._reloaded,
                "stuck_loops": len(self.late()),
            },
            "bus": {
                "connected": self._bus is not None and self._bus.connected,
                "error": self._bus_problem(),
                "num_losses": 0 if self._bus is None else self._bus.num_losses,
            },
            "roles": {name: runner.snapshot() for name, runner in self._runners.items()},
        }

    def health(self) -> Mapping[str, str]:
        """The broker and each role's dependencies."""
        health = {"bus": self._bus_problem() or "ok"}
        for name in self._role_names:
            runner = self._runners.get(name)
            words = {"run": "starting"} if runner is None else runner.health()
            health.update({f"{name}.{dependency}": text for dependency, text in words.items()})
        return health

    def late(self) -> Mapping[str, float]:
        """Loops of roles that do not come round, and for how many seconds."""
        return {
            f"{name}.{loop}": seconds
            for name, runner in self._runners.items()
            for loop, seconds in runner.late().items()
        }

    def _bus_problem(self) -> str:
        return "not connected to the broker yet" if self._bus is None else self._bus.problem

    def ready(self) -> bool:
        """True when every role can do its work and nothing is being stopped."""
        runners = [self._runners.get(name) for name in self._role_names]
        return not self._stop.is_set() and all(runner is not None and runner.ready() for runner in runners)


def _missing_package(role: str, error: ImportError) -> str:
    package = error.name or str(error)
    extra = {"server": "server", "trainer": "trainer"}.get(role)
    advice = f"; install the package with its extra: pip install 'tide-daemon[{extra}]'" if extra else ""
    return f"the role {role} needs {package}, which cannot be imported ({error}){advice}"


def _make_private(folder: Path) -> None:
    """Make a folder that only we can read; one that exists keeps its rights.

    Raises:
        ConfigError: it cannot be made or written.
    """
    try:
        if not folder.is_dir():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"node.state_dir, node.run_dir: cannot make {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"node.state_dir, node.run_dir: cannot write to {folder}; change its owner or the setting")
