"""Wrong credentials cost a look into the database each: one address may send only so many.

Each web process counts by itself. A credential that was good a moment ago is always
looked up, so that whoever shares an address with a guesser (behind a proxy all do) is
not shut out; only credentials that this process has not seen yet have to wait.
"""

from __future__ import annotations

import ipaddress
import math

from models.kernel import clock
from models.kernel.errors import TooMany

MOST_GUESSES = 100
WINDOW_SECONDS = 10.0
MOST_ADDRESSES = 10_000
IPV6_NETWORK_BITS = 64  # one household's or one host's: its addresses are free to choose

guessers: dict[str, tuple[int, int]] = {}
"""By address: the window, and how many wrong credentials it brought."""


def window() -> int:
    return int(clock.monotonic() / WINDOW_SECONDS)


def network_of(address: str) -> str:
    if ":" not in address:
        return address
    try:
        return str(ipaddress.ip_network((address.partition("%")[0], IPV6_NETWORK_BITS), strict=False))
    except ValueError:
        return address


def refuse_guessers(address: str) -> None:
    """Before a credential that is not known to be good is looked up. Raises TooMany."""
    seen, guessed = guessers.get(network_of(address), (0, 0))
    if seen == window() and guessed >= MOST_GUESSES:
        left = (seen + 1) * WINDOW_SECONDS - clock.monotonic()
        text = "Too many wrong credentials came from this address"
        raise TooMany(text, code="too_many_guesses", retry_after=max(1.0, math.ceil(left)))


def count_guess(address: str) -> None:
    """A credential from this address was wrong."""
    if len(guessers) >= MOST_ADDRESSES:
        guessers.clear()
    network, present = network_of(address), window()
    seen, guessed = guessers.get(network, (present, 0))
    guessers[network] = (present, guessed + 1 if seen == present else 1)
