"""The HTTP endpoint of a daemon: health, status, metrics and the page.

    /healthz   200 while the process answers at all; nothing else is meant by it
    /readyz    200 when every role can work, 503 otherwise; the body lists each dependency either way
    /status    the whole snapshot as JSON
    /metrics   the same as Prometheus metrics
    /          a page that shows the snapshot live; it reads /status

Loopback needs no token, but the Host header must name this machine, so that a web page elsewhere
cannot read it by way of a browser. Any other address needs a token on everything but /healthz and the
page's own files. Snapshots hold no prompts; this module adds none.
"""

import hmac
import ipaddress
from dataclasses import dataclass
from importlib import resources

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from tide_daemon.errors import ConfigError
from tide_daemon.status import metrics
from tide_daemon.status.source import Source

_PAGE_FILES = {"/": "page.html", "/page.css": "page.css", "/page.js": "page.js"}
_CONTENT_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_OPEN_PATHS = {"/healthz", *_PAGE_FILES}
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class StatusSettings:
    """Where to listen. `token` "" means none, which only loopback allows; the configuration checks that."""

    host: str = "127.0.0.1"
    port: int = 8790
    token: str = ""


@dataclass(slots=True)
class Token:
    """What clients have to send, "" for nothing. It may change while the endpoint runs."""

    value: str = ""


class StatusServer:
    """The running endpoint. `port` is the real one when the settings said 0."""

    def __init__(self, source: Source, settings: StatusSettings) -> None:
        self._settings = settings
        self._token = Token(settings.token)
        self._runner = web.AppRunner(make_app(source, self._token), access_log=None, shutdown_timeout=1.0)
        self.port = settings.port

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: the address cannot be used.
        """
        settings = self._settings
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, settings.host, settings.port).start()
        except OSError as error:
            await self._runner.cleanup()
            raise ConfigError(
                f"status.port: cannot listen on {settings.host}:{settings.port} ({error.strerror}); "
                "choose another port, or 0 for a free one"
            ) from error
        self.port = self._runner.addresses[0][1]

    def change_token(self, token: str) -> None:
        """Ask for another token from now on."""
        self._token.value = token

    async def stop(self) -> None:
        """Close the listening socket and what is open."""
        await self._runner.cleanup()


def make_app(source: Source, token: Token | str = "") -> web.Application:
    """The application, without a socket (tests use it as it is)."""
    registry = metrics.make_registry(source)

    async def healthz(_request: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def readyz(_request: web.Request) -> web.Response:
        ready = source.ready()
        return _json({"ready": ready, "dependencies": source.health()}, status=200 if ready else 503)

    async def status(_request: web.Request) -> web.Response:
        return _json({**source.snapshot(), "ready": source.ready(), "health": source.health()})

    async def prometheus(_request: web.Request) -> web.Response:
        return web.Response(body=metrics.render(registry), headers={"Content-Type": metrics.CONTENT_TYPE})

    asked = token if isinstance(token, Token) else Token(token)
    app = web.Application(middlewares=[_guard(asked)], client_max_size=1024)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/status", status)
    app.router.add_get("/metrics", prometheus)
    for path, name in _PAGE_FILES.items():
        app.router.add_get(path, _file_handler(name))
    return app


def _guard(token: Token) -> Middleware:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if token.value:
            if request.path not in _OPEN_PATHS and not _has_token(request, token.value):
                raise web.HTTPUnauthorized(
                    headers={"WWW-Authenticate": "Bearer"}, text="send Authorization: Bearer TOKEN (status.token)\n"
                )
        elif not _names_loopback(request.host):
            raise web.HTTPForbidden(text="ask for 127.0.0.1 or localhost; other names need status.token\n")
        response = await handler(request)
        response.headers.update(_HEADERS)
        return response

    return guard


def _has_token(request: web.Request, token: str) -> bool:
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode())


def _names_loopback(host: str) -> bool:
    name = host[1 : host.find("]")] if host.startswith("[") else host.partition(":")[0]
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _file_handler(name: str) -> Handler:
    text = (resources.files("tide_daemon.status") / name).read_text(encoding="utf-8")
    content_type = _CONTENT_TYPES[name.rpartition(".")[2]]

    async def file(_request: web.Request) -> web.Response:
        return web.Response(text=text, content_type=content_type, charset="utf-8")

    return file


def _json(value: object, status: int = 200) -> web.Response:
    body = orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_INDENT_2) + b"\n"
    return web.Response(body=body, status=status, content_type="application/json")
