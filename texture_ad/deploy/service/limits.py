"""What a service refuses: too much, too fast, too slow, and strangers."""

import asyncio
import contextlib
import hmac
import ipaddress
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import ClientDisconnect

from texture_ad.errors import ParameterError
from texture_ad.parameters import Count, Positive, checked

MIN_TOKEN = 16  # characters


class Refusal(Exception):
    """Report a request that is not answered as asked.

    Args:
        status: of HTTP.
        problem: what was wrong, and what to do.
        retry_after: seconds after which the same request may succeed, None for never.
    """

    def __init__(self, status: int, problem: str, retry_after: float | None = None):
        super().__init__(status, problem)
        self.status = status
        self.problem = problem
        self.retry_after = retry_after


@checked
@dataclass(frozen=True)
class Limits:
    """Bound what requests may take.

    Attributes:
        max_mb: of a request's body.
        max_pixels: of a photograph, by its header.
        max_requests: that are received, wait or are scored at the same time.
        rate: requests a second of one client's address, None for any.
        timeout: seconds in which a body has to arrive.
    """

    max_mb: Positive
    max_pixels: Count
    max_requests: Count
    rate: Positive | None
    timeout: Positive


class RateLimit:
    """Let each client through at a steady rate, and up to a second's worth at once.

    Args:
        rate: requests a second, None for any.
        clock: returns seconds.
    """

    def __init__(self, rate: float | None, clock: Callable[[], float] = time.monotonic):
        self.rate = rate
        self.clock = clock
        self.due: dict[str, float] = {}  # client to the moment at which its requests so far would be due

    def check(self, client: str) -> None:
        """Count a request of a client.

        Raises:
            Refusal: 429, it is too early.
        """
        if self.rate is None:
            return
        now = self.clock()
        due = max(self.due.get(client, now), now) + 1 / self.rate
        wait = due - now - max(1.0, 1 / self.rate)
        if wait > 1e-9:
            raise Refusal(429, f"more than {self.rate:g} requests a second; slow down", wait)
        if len(self.due) > 1000:  # forget those who may send at once anyway
            self.due = {name: moment for name, moment in self.due.items() if moment > now}
        self.due[client] = due


def is_loopback(host: str) -> bool:
    """Return whether a host's name or address is reached from its own machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_token(host: str, token: str | None) -> None:
    """Check that a service which others can reach asks for a token, and that it can't be guessed.

    Raises:
        ParameterError: no token, or a short one.
    """
    if token is None and not is_loopback(host):
        problem = f"host={host} can be reached from other machines, which then need a token"
        raise ParameterError("token", token, f"{problem}; set TEXTURE_AD_TOKEN to a secret")
    if token is not None and len(token) < MIN_TOKEN:
        found = "has too few characters" if token else "is empty"
        problem = f"{found}; expected at least {MIN_TOKEN}, from token= or the variable TEXTURE_AD_TOKEN"
        raise ParameterError("token", "...", problem)


def authorise(header: str | None, token: str | None) -> None:
    """Check a request's `Authorization` header.

    Raises:
        Refusal: 401, where there is a token and the header doesn't hold it.
    """
    given = (header or "").removeprefix("Bearer ")
    if token is not None and not hmac.compare_digest(given.encode(), token.encode()):
        raise Refusal(401, "send the service's token as 'Authorization: Bearer TOKEN'")


def check_host(header: str, host: str) -> None:
    """Check that a service of this machine alone is asked for by a name of this machine.

    Else a page of a stranger could reach it through a name of its own that points here (DNS rebinding).

    Raises:
        Refusal: 400, by another name.
    """
    name = header.rpartition(":")[0] if header.rpartition(":")[2].isdigit() else header
    if is_loopback(host) and not is_loopback(name.strip("[]")):
        raise Refusal(400, f"asked for as {name!r}; use localhost or 127.0.0.1")


async def receive(chunks: AsyncIterator[bytes], path: Path, limits: Limits) -> None:
    """Write a request's body to a file as it arrives.

    Raises:
        Refusal: 413, too large; 408, too slow; 422, empty.
    """
    try:
        size = await asyncio.wait_for(_write(chunks, path, int(limits.max_mb * 1e6)), limits.timeout)
    except asyncio.TimeoutError as error:
        raise Refusal(408, f"the body did not arrive within {limits.timeout:g} seconds") from error
    if not size:
        raise Refusal(422, "the body is empty; send the bytes of one image")


async def drain(chunks: AsyncIterator[bytes], limits: Limits) -> None:
    """Read the rest of a body that is refused, up to ten times what is allowed, and forget it."""

    async def read() -> None:
        left = 10 * limits.max_mb * 1e6
        async for chunk in chunks:
            left -= len(chunk)
            if left < 0:
                break

    with contextlib.suppress(asyncio.TimeoutError, ClientDisconnect):
        await asyncio.wait_for(read(), limits.timeout)


async def _write(chunks: AsyncIterator[bytes], path: Path, most: int) -> int:
    """Write chunks to a file; return how many bytes they are."""
    size = 0
    with open(path, "wb") as sink:
        async for chunk in chunks:
            size += len(chunk)
            check_size(size, most)
            sink.write(chunk)
    return size


def check_size(size: int, most: int) -> None:
    """Check a body's size in bytes.

    Raises:
        Refusal: 413, too large.
    """
    if size > most:
        raise Refusal(413, f"the body has more than {most / 1e6:g} MB; send a smaller image")
