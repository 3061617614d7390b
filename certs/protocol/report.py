"""A sidecar's report to its CA: its state, in one bounded JSON document. Pure.

A sidecar sends it with each poll, and at once when it has an alarm. The CA keeps the last one of each sidecar and shows it
to people. It decides nothing by it: a sidecar that was taken over reports what it likes. It can do so about itself alone,
since the CA takes the identity from the certificate of the connection.

================== =====================================================================================================
``version``        1; a document of another version is refused
``release``        of the program, as text
``at``             when it was made; ``started_at``: when the process was
``healthy``        whether connections can succeed; ``unwell``: why not, a sentence each
``draining``       whether it is; ``waiting``: what it waits for, a sentence each
``policy``         the version of the mesh file in force; ``bundle``: of the trust bundle; ``list``: when the list of
                   revocations in force was made; ``reload_refused``: what of its files is refused, a sentence each
``certificate``    ``serial`` (hexadecimal), ``not_after``, ``renews_at``
``inbound``        of each port: ``port``, ``may_call``, ``mode`` (``strict``, ``permissive``), ``until`` (its last day)
``outbound``       of each target: ``to``, ``allowed``
``edges``          of each pair: ``direction``, ``peer``, ``port``, ``rule``, ``opened`` (and ``opening_ms``, how long that
                   took in all), ``live``, ``ended`` and ``refused`` (a number for each reason), ``to_app``, ``from_app``
                   (bytes), ``streams``, ``reused``
``refusals``       the last ones, those that are alike in one: ``direction``, ``port``, ``reason``, ``peer``, ``address``,
                   ``count``, ``first``, ``last``, ``message``, ``connection_id``
``plaintext``      callers without TLS: ``port``, ``address``, ``name``, ``count``, ``first``, ``last``, ``allowed``
``alarms``         those in force
``channels``       ``idle``, ``streams``, ``reused``
``ending``         calls that are refused soon, since a rule runs out: ``from``, ``to``, ``until``, ``rule``
``strangers``      connections whose peer has not proved an identity; ``log_lost``: lines of the log
``cut``            how many entries of its lists were left out, since it would have been too large
================== =====================================================================================================
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from certs.protocol.documents import unique

VERSION = 1
MAX_BYTES = 32 * 1024

MAX_PARTS = 6000
"""Objects, arrays and commas of a document. The largest that is ours has 2,500; the size alone would allow 16,000."""

MAX_TEXT = 500
"""Characters of one value. A longer one is cut."""

MAX_LIST = 256
MAX_KEYS = 40
MAX_DEPTH = 4

_FIELDS: Mapping[str, type] = {
    "version": int,
    "release": str,
    "at": str,
    "started_at": str,
    "healthy": bool,
    "unwell": list,
    "draining": bool,
    "waiting": list,
    "policy": str,
    "bundle": int,
    "list": str,
    "reload_refused": list,
    "certificate": dict,
    "inbound": list,
    "outbound": list,
    "edges": list,
    "refusals": list,
    "plaintext": list,
    "alarms": list,
    "channels": dict,
    "ending": list,
    "strangers": int,
    "log_lost": int,
    "cut": int,
}
_CUT_FIRST = (
    *("refusals", "edges", "plaintext", "inbound", "outbound", "ending", "waiting", "reload_refused", "unwell"),
    "alarms",
)
"""Of a report that is too large; the ends of these lists go, alarms last."""


def encode(report: Mapping[str, Any]) -> bytes:
    """The document, of at most :data:`MAX_BYTES`. What comes first in a list is what counts most."""
    fitting = {name: value for name, value in report.items() if value is not None}
    data, cut = _json(fitting), 0
    for name in _CUT_FIRST:
        while len(data) > MAX_BYTES and fitting.get(name):
            rows = fitting[name]
            kept = len(rows) // 2
            cut += len(rows) - kept
            fitting |= {name: rows[:kept], "cut": cut}
            data = _json(fitting)
    return data


def parse(data: bytes) -> dict[str, Any]:
    """The report, with the fields of the table alone, each of its type and bounded; one of a newer release may have more.
    Raises :class:`ValueError`."""
    if len(data) > MAX_BYTES:
        raise ValueError(f"a report has at most {MAX_BYTES >> 10} KiB")
    if sum(map(data.count, (b"[", b"{", b","))) > MAX_PARTS:
        raise ValueError("the report has too many parts")
    try:
        found = json.loads(data, object_pairs_hook=unique, parse_constant=_no_number)
    except RecursionError as fault:
        raise ValueError("the report is nested too deep") from fault
    except ValueError as fault:
        raise ValueError("the report is not JSON") from fault
    if not isinstance(found, dict) or found.get("version") != VERSION:
        raise ValueError(f"a report is a JSON object of version {VERSION}")
    report: dict[str, Any] = {}
    for name, kind in _FIELDS.items():
        if name in found:
            value = found[name]
            if type(value) is not kind:
                raise ValueError(f"{name} is not as it should be")
            report[name] = _bounded(value, MAX_DEPTH)
    return report


def _bounded(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return value[:MAX_TEXT]
    if value is None or isinstance(value, bool | int):
        if isinstance(value, int) and abs(value) >= 2**63:
            raise ValueError("a number is too large")
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("a number is too large")
        return value
    if depth == 0:
        raise ValueError("the report is nested too deep")
    if isinstance(value, list):
        return [_bounded(one, depth - 1) for one in value[:MAX_LIST]]
    return {name[:MAX_TEXT]: _bounded(one, depth - 1) for name, one in list(value.items())[:MAX_KEYS]}


def _json(report: Mapping[str, Any]) -> bytes:
    return json.dumps(report, separators=(",", ":")).encode()


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")
