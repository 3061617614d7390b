"""The names and numbers of the CA's API that both ends use: paths, headers, fields, statuses, limits. Pure.

Each is defined once, here. :mod:`certs.protocol.denial` defines the reason words of refusals. The signed documents, the
enrolment credential and the proof of possession each define their own tag. A change of any of these is a new version of the
protocol: during an update, sidecars and CAs of two versions communicate.
"""

from __future__ import annotations

import re

# -- the CA's identity and protocol ------------------------------------------------------------------------------------

ALPN = "http/1.1"
"""The protocol identifier (RFC 7301) of HTTP/1.1, the only protocol of the CA's listener."""

CA_SEGMENTS = ("mesh", "ca")
"""The path of the CA's SPIFFE ID. A service cannot have it, because a service's path has one segment."""

CA_SERVICE = "/".join(CA_SEGMENTS)

# -- requests ----------------------------------------------------------------------------------------------------------

ENROL_PATH = "/v1/enrol"
RENEW_PATH = "/v1/renew"
NONCE_PATH = "/v1/nonce"
REENROL_PATH = "/v1/reenrol"
BUNDLE_PATH = "/v1/bundle"
REVOCATIONS_PATH = "/v1/revocations"
REPORT_PATH = "/v1/report"

AFTER = "after"
"""The query parameter of :data:`BUNDLE_PATH`: the version of the caller's bundle."""

# -- headers -----------------------------------------------------------------------------------------------------------

INSTANCE_HEADER = "Mesh-Instance"
"""The replica that sends the request: :data:`INSTANCE`, made once for each state directory."""

BUNDLE_HEADER = "Mesh-Bundle"
"""In a request, the version of the caller's bundle. In an answer, the version of the newest, for people: nothing signs it,
so no sidecar reads it."""

ETAG_HEADER, IF_NONE_MATCH_HEADER = "ETag", "If-None-Match"  # RFC 9110 8.8.3, 13.1.2
CONTENT_TYPE_HEADER, JSON = "Content-Type", "application/json"

# -- the fields of JSON objects ----------------------------------------------------------------------------------------

SERVICE, PASS, CSR, CERTIFICATE = "service", "pass", "csr", "certificate"
NONCE, SIGNATURE, BUNDLES = "nonce", "signature", "bundles"
ERROR, MESSAGE = "error", "message"

ENROL_FIELDS = (SERVICE, PASS, CSR)
RENEW_FIELDS = (CSR,)
REENROL_FIELDS = (CERTIFICATE, NONCE, SIGNATURE, CSR)

# -- statuses (those of refusals: certs.protocol.denial) ---------------------------------------------------------------

OK, NOT_MODIFIED = 200, 304

UNKNOWN_PATH = frozenset({"not_found", "method_not_allowed"})
"""What an HTTP server of ours answers where a path, or a method of one, is not known: an older CA."""

# -- limits and patterns -----------------------------------------------------------------------------------------------

MAX_BUNDLES = 64
"""In one answer; the newest are sent. A root rotation publishes three."""

MAX_BUNDLES_BYTES = 1 << 20
MAX_UNVERIFIED_BUNDLES_BYTES = 256 << 10
"""The same from a CA that has not proved its identity, and what a CA sends at most: it cannot know who verifies it. A bundle
of two roots has 4 KiB, the largest 150."""

MAX_REVOCATIONS_BYTES = 2 << 20
"""Twice what the document may have, so that one that has grown too large is refused by what it is."""

MAX_CERTIFICATE_BYTES = 64 << 10
MAX_NONCE_BYTES = 4 << 10
MAX_REPORT_ANSWER_BYTES = 256 << 10

NONCE_SECONDS = 60
"""How long a nonce is valid."""

INSTANCE = re.compile(r"[0-9a-f]{32}")
VERSION = re.compile(r"[0-9]{1,15}")
"""A bundle's version, in a header or a query."""
