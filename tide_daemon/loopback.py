"""Which addresses only this machine can reach: what may go without TLS and without a token."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address. A name other than localhost counts as outside."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
