"""Who may look: nobody needs a token on loopback, everybody does beyond it.

A program sends `Authorization: Bearer TOKEN`. A browser is shown a form, sends the token once, and keeps a cookie that
stands for it: an end of validity and an HMAC of that under the token, so that it holds across restarts of the daemon,
ends when the token is changed, and does not reveal it. The cookie goes to no other site's requests (SameSite=Strict)
and no script can read it (HttpOnly). Comparisons take the same time whatever is wrong.

On loopback the Host header must name this machine, so that a web page elsewhere cannot read the status by way of a name
that points here.
"""

import hashlib
import hmac
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from aiohttp import web

from tide_daemon.loopback import is_loopback

SESSION_S = 12 * 3600
"""For how long a browser need not ask again."""
_LABEL = b"tide-daemon status page "


@dataclass(slots=True)
class Token:
    """What clients have to send, "" for nothing. It may change while the endpoint runs."""

    value: str = ""


def names_loopback(host_header: str) -> bool:
    """The same of a Host header, which may hold a port."""
    if host_header.startswith("["):
        return is_loopback(host_header[1 : host_header.find("]")])
    return is_loopback(host_header.partition(":")[0])


def is_token(given: str, token: str) -> bool:
    """Whether what was given is the token."""
    return bool(token) and hmac.compare_digest(given.encode("utf-8", "surrogateescape"), token.encode())


def has_token(request: web.Request, token: str) -> bool:
    """Whether a request may see what the token guards: by its header or by its cookie."""
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return is_token(given.strip(), token)
    return _is_session(request.cookies.get(cookie_name(request), ""), token, time.time())


def cookie_name(request: web.Request) -> str:
    """One a port: cookies of one host are shared by all its ports, and two daemons may have two tokens."""
    transport = request.transport
    address = None if transport is None else transport.get_extra_info("sockname")
    return f"tide_session_{address[1] if address else 0}"


def make_session(token: str, now: float) -> str:
    """The cookie's value for a browser that showed the token at `now`, unix seconds."""
    until = str(int(now) + SESSION_S)
    return f"{until}.{_seal(token, until)}"


def is_from_here(request: web.Request) -> bool:
    """Whether a form was sent by this page, as far as the browser says where from."""
    origin = request.headers.get("Origin", "")
    return not origin or urlsplit(origin).netloc == request.host


def _is_session(value: str, token: str, now: float) -> bool:
    until, _, seal = value.partition(".")
    good = hmac.compare_digest(seal.encode("utf-8", "surrogateescape"), _seal(token, until).encode())
    return good and until.isascii() and until.isdecimal() and len(until) <= 12 and now < int(until)


def _seal(token: str, until: str) -> str:
    words = _LABEL + until.encode("utf-8", "surrogateescape")
    return hmac.new(token.encode(), words, hashlib.sha256).hexdigest()
