"""The names and numbers that both ends of the CA's API write: paths, headers, fields, statuses, limits. Pure.

Each stands here once; the words of a refusal stand in :mod:`certs.protocol.denial`. The signed documents, the enrolment
credential and the proof of possession each keep their own tag in their own module. A change of any of these is a new
version of the protocol: sidecars and CAs of two versions talk to each other during an update.
"""

from __future__ import annotations

import re

# -- who answers, and over what ----------------------------------------------------------------------------------------

ALPN = "http/1.1"
"""RFC 7301's identifier of HTTP/1.1, the one protocol that the CA's listener speaks."""

CA_SEGMENTS = ("mesh", "ca")
"""The path of the CA's SPIFFE ID. No service can have it: a service's path has one segment."""

CA_SERVICE = "/".join(CA_SEGMENTS)

# -- requests ----------------------------------------------------------------------------------------------------------

ENROL_PATH = "/v1/enrol"
RENEW_PATH = "/v1/renew"
NONCE_PATH = "/v1/nonce"
REENROL_PATH = "/v1/reenrol"
BUNDLE_PATH = "/v1/bundle"
REVOCATIONS_PATH = "/v1/revocations"

AFTER = "after"
"""The parameter of :data:`BUNDLE_PATH`'s query: the version of the bundle that the caller has."""

# -- headers -----------------------------------------------------------------------------------------------------------

INSTANCE_HEADER = "Mesh-Instance"
"""Which replica asks: :data:`INSTANCE`, made once for each state directory."""

BUNDLE_HEADER = "Mesh-Bundle"
"""Of a request, the version of the bundle that the caller has; of an answer, the newest one's."""

ETAG_HEADER, IF_NONE_MATCH_HEADER = "ETag", "If-None-Match"  # RFC 9110 8.8.3, 13.1.2
CONTENT_TYPE_HEADER, JSON = "Content-Type", "application/json"

# -- the fields of JSON objects ----------------------------------------------------------------------------------------

SERVICE, PASS, CSR, CERTIFICATE = "service", "pass", "csr", "certificate"
NONCE, SIGNATURE, BUNDLES = "nonce", "signature", "bundles"
ERROR, MESSAGE = "error", "message"

ENROL_FIELDS = (SERVICE, PASS, CSR)
RENEW_FIELDS = (CSR,)
REENROL_FIELDS = (CERTIFICATE, NONCE, SIGNATURE, CSR)

# -- statuses: those of refusals are in certs.protocol.denial ----------------------------------------------------------

OK, NOT_MODIFIED = 200, 304

# -- limits and forms --------------------------------------------------------------------------------------------------

MAX_ANSWER_BYTES = 4 << 20
NONCE_SECONDS = 60
"""How long a nonce is good."""

INSTANCE = re.compile(r"[0-9a-f]{32}")
VERSION = re.compile(r"[0-9]{1,15}")
"""A bundle's version, in a header or in a query."""
