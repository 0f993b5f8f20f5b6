"""Who may come in: by what name they call the service, from which page, with which token, and how often."""

import math
from typing import Final

from starlette.types import Scope

from uno.event_bus.dead_letter.service.access import Tokens
from uno.event_bus.dead_letter.service.caller import ANYONE, NOBODY, Caller
from uno.event_bus.dead_letter.service.headers import Headers, host_of, netloc_of
from uno.event_bus.dead_letter.service.rate import Rates
from uno.event_bus.dead_letter.service.refusal import Refusal
from uno.event_bus.dead_letter.service.settings import ServiceSettings, is_loopback

__all__ = ["OPEN", "PROBES", "Entrance"]

PROBES: Final = frozenset({"/healthz", "/livez", "/readyz"})
"""Pages that anybody may ask for, by whatever name: kubelet calls a pod by its address."""

OPEN: Final = PROBES | {"/", "/docs", "/openapi.json"}
"""Pages that need no token: they tell nothing of any letter."""

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})


class Entrance:
    """Checks what comes in; arguments as of `guard.Guard`."""

    def __init__(self, settings: ServiceSettings, tokens: Tokens | None, address: str) -> None:
        self._settings = settings
        self._tokens = tokens
        self._rates = Rates(settings.rate)
        self._names = frozenset(settings.hosts)
        self._own_names = frozenset({settings.host.strip("[]").lower(), address.strip("[]").lower()})

    def check(self, scope: Scope, headers: Headers) -> Caller:
        """Return who asks. Raises `Refusal`."""
        path = scope["path"]
        if path not in PROBES:
            self._check_host(headers)
        self._check_origin(scope, headers)
        return self._caller(path, headers)

    def check_rate(self, scope: Scope, caller: Caller) -> None:
        """Refuse what comes too often from one caller, or address where callers have no names; never a probe.

        A busy application beside it has the probes' address: they would have the service restarted for that.
        """
        if scope["path"] in PROBES:
            return
        client = scope.get("client")
        wait_s = self._rates.wait_s(
            f"name {caller.name}" if self._tokens and caller.name else f"{client and client[0]}"
        )
        if wait_s:
            after = {"retry-after": str(math.ceil(wait_s))}
            raise Refusal(429, "rate_limited", f"more than {self._settings.rate:g} requests a second", after)

    def _check_host(self, headers: Headers) -> None:
        given = headers.all(b"host")
        if len(given) != 1:
            raise Refusal(400, "bad_request", "a request has exactly one Host", closes=True)
        host = host_of(given[0])
        if self._names:
            is_ours = host in self._names
        else:
            is_ours = self._tokens is not None or is_loopback(host) or host in self._own_names
        if not is_ours or not host:
            raise Refusal(421, "misdirected", "the service is not called by this Host: see DLQ_SERVICE_HOSTS")

    def _check_origin(self, scope: Scope, headers: Headers) -> None:
        """Refuse what another site's page has a browser do here."""
        if scope["method"] in _SAFE:
            return
        host = b"".join(headers.all(b"host")).decode("latin-1").lower()
        for origin in headers.all(b"origin"):
            if netloc_of(origin) != host:
                raise Refusal(403, "permission_denied", "the request comes from a page of another site")
        for site in headers.all(b"sec-fetch-site"):
            if site not in (b"same-origin", b"none"):
                raise Refusal(403, "permission_denied", "the request comes from a page of another site")

    def _caller(self, path: str, headers: Headers) -> Caller:
        if self._tokens is None:
            return ANYONE
        return NOBODY if path in OPEN else self._tokens.caller(headers.all(b"authorization"))
