"""The HTTP endpoint of a daemon: health, status, metrics and the page.

    /healthz        200 while the process answers at all; nothing else is meant by it
    /readyz         200 when every role can work, 503 otherwise; the body lists each dependency either way
    /status         the whole snapshot as JSON
    /metrics        the same as Prometheus metrics
    /               the page: the fleet, live; it follows /events (live.py)
    /login /logout  for browsers, where a token is asked for

Who may look is in access.py. Loopback needs no token; any other address needs one on everything but /healthz and the
page's own files, and is refused without one. Snapshots hold no prompts; this module adds none.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib import resources
from string import Template

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from tide_daemon.errors import ConfigError
from tide_daemon.loopback import is_loopback
from tide_daemon.status import metrics
from tide_daemon.status.access import (
    SESSION_S,
    Token,
    cookie_name,
    has_token,
    is_from_here,
    is_token,
    make_session,
    names_loopback,
)
from tide_daemon.status.live import Live
from tide_daemon.status.source import Source

_FILES = {"/page.css": "text/css", "/page.js": "text/javascript", "/charts.js": "text/javascript"}
_OPEN_PATHS = {"/healthz", "/login", *_FILES}
_WRONG_TOKEN_PAUSE_S = 0.5
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
"""On every answer, errors included."""


@dataclass(frozen=True, slots=True)
class StatusSettings:
    """Where to listen. `token` "" means none, which only loopback allows."""

    host: str = "127.0.0.1"
    port: int = 8790
    token: str = ""


class StatusServer:
    """The running endpoint. `port` is the real one when the settings said 0.

    Raises:
        ConfigError: other machines can reach the address, and there is no token.
    """

    def __init__(self, source: Source, settings: StatusSettings) -> None:
        if not settings.token and not is_loopback(settings.host):
            raise ConfigError(f"status.host: {settings.host} can be reached from other machines; set status.token")
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
        """Ask for another token from now on. Whoever showed the old one has to show the new one."""
        self._token.value = token

    async def stop(self) -> None:
        """Close the listening socket and what is open."""
        await self._runner.cleanup()


def make_app(source: Source, token: Token | str = "") -> web.Application:
    """The application, without a socket (tests use it as it is)."""
    registry = metrics.make_registry(source)
    asked = token if isinstance(token, Token) else Token(token)
    live = Live(source)

    async def healthz(_request: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def readyz(_request: web.Request) -> web.Response:
        ready = source.ready()
        return _json({"ready": ready, "dependencies": source.health()}, status=200 if ready else 503)

    async def status(_request: web.Request) -> web.Response:
        return _json({**source.snapshot(), "ready": source.ready(), "health": source.health()})

    async def prometheus(_request: web.Request) -> web.Response:
        return web.Response(body=metrics.render(registry), headers={"Content-Type": metrics.CONTENT_TYPE})

    async def events(request: web.Request) -> web.StreamResponse:
        return await live.events(request, lambda: not asked.value or has_token(request, asked.value))

    async def keep_history(_app: web.Application) -> AsyncIterator[None]:
        task = asyncio.create_task(live.run(), name="status history")
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def end_streams(_app: web.Application) -> None:
        live.stop()

    app = web.Application(middlewares=[_guard(asked)], client_max_size=1024)
    app.on_response_prepare.append(_add_headers)
    app.cleanup_ctx.append(keep_history)
    app.on_shutdown.append(end_streams)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/status", status)
    app.router.add_get("/metrics", prometheus)
    app.router.add_get("/events", events, allow_head=False)
    app.router.add_get("/", _page_handler(asked))
    app.router.add_get("/login", _login_page)
    app.router.add_post("/login", _login_handler(asked))
    app.router.add_post("/logout", _logout)
    for path, content_type in _FILES.items():
        app.router.add_get(path, _file_handler(path[1:], content_type))
    return app


async def _add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)


def _guard(token: Token) -> Middleware:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if token.value:
            if request.path not in _OPEN_PATHS and not has_token(request, token.value):
                if request.path == "/" and request.method in ("GET", "HEAD"):
                    raise web.HTTPSeeOther("login")
                raise web.HTTPUnauthorized(
                    headers={"WWW-Authenticate": "Bearer"}, text="send Authorization: Bearer TOKEN (status.token)\n"
                )
        elif not names_loopback(request.host):
            raise web.HTTPForbidden(text="ask for 127.0.0.1 or localhost; other names need status.token\n")
        return await handler(request)

    return guard


def _page_handler(token: Token) -> Handler:
    page = _text("page.html")

    async def page_or_login(_request: web.Request) -> web.Response:
        shown = page if token.value else page.replace('id="logout"', 'id="logout" hidden')
        return _html(shown)

    return page_or_login


async def _login_page(_request: web.Request) -> web.Response:
    return _html(_login_text(""))


def _login_handler(token: Token) -> Handler:
    async def login(request: web.Request) -> web.Response:
        if not is_from_here(request):
            raise web.HTTPForbidden(text="this form was sent from another page\n")
        given = (await request.post()).get("token", "")
        if token.value and not is_token(given if isinstance(given, str) else "", token.value):
            await asyncio.sleep(_WRONG_TOKEN_PAUSE_S)
            return _html(_login_text("That is not the token. It is status.token of this daemon."), status=401)
        answer = web.Response(status=303, headers={"Location": "./"})
        if token.value:
            answer.set_cookie(
                cookie_name(request),
                make_session(token.value, time.time()),
                max_age=SESSION_S,
                httponly=True,
                samesite="Strict",
                secure=request.secure,
            )
        return answer

    return login


async def _logout(request: web.Request) -> web.Response:
    if not is_from_here(request):
        raise web.HTTPForbidden(text="this form was sent from another page\n")
    answer = web.Response(status=303, headers={"Location": "login"})
    answer.del_cookie(cookie_name(request), httponly=True, samesite="Strict")
    return answer


def _login_text(problem: str) -> str:
    """The form; `problem` is a sentence of ours, never something that was sent."""
    return Template(_text("login.html")).substitute(problem=problem)


def _file_handler(name: str, content_type: str) -> Handler:
    text = _text(name)

    async def file(_request: web.Request) -> web.Response:
        return web.Response(text=text, content_type=content_type, charset="utf-8")

    return file


def _text(name: str) -> str:
    return (resources.files("tide_daemon.status") / name).read_text(encoding="utf-8")


def _html(text: str, status: int = 200) -> web.Response:
    return web.Response(text=text, status=status, content_type="text/html", charset="utf-8")


def _json(value: object, status: int = 200) -> web.Response:
    body = orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_INDENT_2) + b"\n"
    return web.Response(body=body, status=status, content_type="application/json")
