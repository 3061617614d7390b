"""What a running sidecar does for `sidecar probe` and `sidecar verify`: over its own Unix socket, and nowhere else.

``POST /probe``: calls one target as the app would, up to the callee's verdict, at each of its addresses. By default the
callee ends it before it reaches its app, so that no database counts failed connections. ``POST /probe/expect``: tells this
sidecar, as a callee, whose probes to expect (:mod:`sidecar.observe.announced`). ``GET /probe/seen``: its own certificate and
policy, and what became of the connections since.

It is no oracle. Only targets of the configuration are called, and only if our own policy allows it: anything else gets one
word, and nothing is looked up or dialled for it. A peer that is not who it should be raises the alarm, as for every call.

The answers hold no key, and nothing is let in or changed by a question. A request has five seconds in all
(:data:`sidecar.observe.local.FIRST_REQUEST_SECONDS`), so the callee has :data:`SECONDS`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import trio

from sidecar.config.sidecar_yaml import Outbound
from sidecar.documents.address import Address
from sidecar.identity.keys import certificate_digest
from sidecar.identity.reasons import Reason, Refused
from sidecar.observe.record import ConnectionRecord
from sidecar.proxy.node import Node
from sidecar.proxy.outbound import find_peer
from sidecar.proxy.waiting import end_unused
from sidecar.relay.frames import Attribute
from sidecar.transport import dial
from sidecar.transport.dial import SocketAddress
from sidecar.transport.http1 import Handler, Request, Response, error
from sidecar.transport.tls import KeyPair

SECONDS = 4.0
"""For the look-up and all addresses, which are called at once: to connect, for the handshake and for the verdict."""

MAX_ADDRESSES = 16
NOT_DECLARED = "not_declared"
"""The word for a target that the configuration does not name."""


class Probing:
    """The questions of one sidecar. ``routes``: what it may call now. ``keys``: its certificate. ``listening``: its own
    listeners, which it does not call."""

    def __init__(
        self,
        node: Node,
        routes: Callable[[], Iterable[Outbound]],
        keys: Callable[[], KeyPair],
        listening: Callable[[], Iterable[SocketAddress]],
    ) -> None:
        self.node = node
        self._routes = routes
        self._keys = keys
        self._listening = listening
        self._at_once = trio.CapacityLimiter(MAX_ADDRESSES)

    def expect(self, callers: Iterable[str], strangers: Iterable[str], seconds: float) -> dict[str, Any]:
        """Expects probes with these certificates. Raises :class:`ValueError`."""
        self.node.announced.announce(callers, strangers, seconds, self.node.time())
        return {"seconds": seconds}

    def seen(self) -> dict[str, Any]:
        """Who this is, and what became of the connections since the announcement."""
        node, leaf = self.node, self._keys().chain[0]
        return {
            "service": node.config.service,
            "identity": str(node.current.id),
            "policy": node.current.mesh.version,
            "certificate": {
                "sha256": certificate_digest(leaf).hex(),
                "serial": f"{leaf.serial_number:x}",
                "issuer": leaf.issuer.rfc4514_string(),
                "not_before": f"{leaf.not_valid_before_utc:%FT%TZ}",
                "not_after": f"{leaf.not_valid_after_utc:%FT%TZ}",
            },
            "records": node.announced.records(node.time()),
            "plaintext": [one.as_json() for one in node.callers.current()],
        }

    async def probe(self, to: str, *, through_app: bool = False) -> dict[str, Any]:
        """Calls ``to`` (``api:http``) at each of its addresses."""
        node, route = self.node, next((one for one in self._routes() if str(one.target) == to), None)
        answer: dict[str, Any] = {"to": to, "policy": node.current.mesh.version, "rule": None, "results": []}
        if route is None or route.ambiguous_with:
            return answer | {"reason": NOT_DECLARED}
        decision = node.decide(node.current.id, route.service, route.port)
        answer["rule"] = decision.rule
        if not decision.allowed:
            return answer | {"reason": str(Reason.POLICY_DENIED)}
        until = trio.current_time() + SECONDS
        try:
            with trio.fail_at(until):
                addresses = await _addresses(route)
        except (OSError, trio.TooSlowError) as fault:
            detail = f"cannot find {route.target}: {getattr(fault, 'strerror', None) or 'no answer in time'}"
            return answer | {"reason": str(Reason.CONNECT_FAILED), "message": detail}
        results: list[dict[str, Any]] = [{} for _ in addresses]

        async def one(index: int, address: Address) -> None:
            async with self._at_once:
                results[index] = await self._call(route, address, through_app=through_app)

        with trio.move_on_at(until):
            async with trio.open_nursery() as nursery:
                for index, address in enumerate(addresses):
                    nursery.start_soon(one, index, address)
        late = {"result": "refused", "reason": str(Reason.HANDSHAKE_TIMEOUT), "message": f"no verdict in {SECONDS:g} s"}
        answer["results"] = [
            found or {"address": str(address), **late} for found, address in zip(results, addresses, strict=True)
        ]
        return answer

    async def _call(self, route: Outbound, address: Address, *, through_app: bool) -> dict[str, Any]:
        node = self.node
        peer = dial.Upstream(f"{route.target}'s sidecar", (address,), dial.Resolver(), tuple(self._listening()))
        record = ConnectionRecord("outbound", node.config.service, route.port, node.time(), upstream=str(route.target))
        kind = Attribute.PROBE_THROUGH if through_app else Attribute.PROBE
        result: dict[str, Any] = {"address": str(address), "result": "ok", "app": through_app}
        try:
            found = await find_peer(node, node.current, route, peer, record, lambda: None, kind)
        except Refused as refusal:
            if through_app or refusal.reason is not Reason.PEER_REFUSED or refusal.peer_reason != Reason.PROBE:
                result |= {"result": "refused", "reason": str(refusal.reason), "peer_reason": refusal.peer_reason}
                result["message"] = f"{node.config.service} {refusal.detail}"
        else:
            # Without the mesh's protocol there is no verdict: the peer has proved who it is, and that is all.
            result["verdict"] = found.frames is not None
            await end_unused(found)
        for name in ("peer_id", "connection_id", "tls_group", "handshake_ms"):
            result[name] = getattr(record, name)
        return result


class _BadRequestError(ValueError):
    """The question is not one that is answered; the message says why."""


async def _addresses(route: Outbound) -> list[Address]:
    """Every address of the target, :data:`MAX_ADDRESSES` at most. Raises OSError if none is found."""
    found: dict[Address, None] = {}
    fault: OSError | None = None
    for peer in route.peers:
        try:
            answers = [str(peer.ip)] if peer.ip is not None else [host for _, host in await dial.look_up(peer.host)]
        except OSError as error:
            fault = error
            continue
        found |= dict.fromkeys(Address(host, peer.port) for host in answers)
    if not found:
        raise fault or OSError("it has no address")
    return list(found)[:MAX_ADDRESSES]


def routes(find: Callable[[str | None], Probing | None]) -> dict[str, Mapping[str, Handler]]:
    """The questions over HTTP. ``find``: the sidecar of a service, or the only one for None; None if there is none."""

    def ours(service: Any) -> Probing:
        found = find(service) if service is None or isinstance(service, str) else None
        if found is None:
            raise _BadRequestError("no sidecar of this service answers here")
        return found

    async def probe(request: Request) -> Response:
        asked = _asked(request)
        to, through = asked.get("to"), asked.get("through_app", False)
        if not isinstance(to, str) or not isinstance(through, bool):
            raise _BadRequestError("`to` is a text, such as api:http, and `through_app` true or false")
        return Response.of(200, await ours(asked.get("service")).probe(to, through_app=through))

    async def expect(request: Request) -> Response:
        asked = _asked(request)
        callers, strangers = (_texts(asked.get(name, [])) for name in ("callers", "strangers"))
        seconds = asked.get("seconds")
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise _BadRequestError("`seconds` is a number")
        return Response.of(200, ours(asked.get("service")).expect(callers, strangers, seconds))

    async def seen(request: Request) -> Response:
        return Response.of(200, ours(request.query.get("service")).seen())

    return {
        "/probe": {"POST": _refusing(probe)},
        "/probe/expect": {"POST": _refusing(expect)},
        "/probe/seen": {"GET": _refusing(seen)},
    }


def _refusing(handler: Handler) -> Handler:
    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except (ValueError, RecursionError) as fault:
            return error(400, "bad_request", str(fault) or type(fault).__name__)

    return answer


def _asked(request: Request) -> dict[str, Any]:
    asked = json.loads(request.body or b"{}")
    if not isinstance(asked, dict):
        raise _BadRequestError("the body is a JSON object")
    return asked


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise _BadRequestError("`callers` and `strangers` are lists of fingerprints")
    return value
