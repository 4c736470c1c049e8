"""How an address is shown: user and password may stand in it, and what is shown ends in logs and on pages."""

import re


def without_login(address: str, instead: str = "") -> str:
    """One address without what stands before its host. To the last @: a password may hold one, or a slash."""
    return re.sub("//.*@", f"//{instead}", address)


def show_addresses(addresses: str, instead: str = "") -> str:
    """Addresses with commas between them, each without its login."""
    return ",".join(without_login(address, instead) for address in addresses.split(","))
