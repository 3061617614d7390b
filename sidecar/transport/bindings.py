"""The private bindings of pyOpenSSL that ``tls`` uses, looked up at import.

pyOpenSSL does not promise these names, so another version may lack one. The import then raises :class:`UsageError` with the
missing names: an incompatible upgrade stops the start, not a connection.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cryptography
import OpenSSL
from OpenSSL import SSL, crypto

from sidecar.identity.reasons import UsageError
from sidecar.transport.tls_errors import LibraryError

REQUIRED = (
    "SSL._lib", "SSL._ffi",
    "Connection._reverse_mapping", "connection._ssl", "connection._into_ssl", "connection._from_ssl",
    "context._context", "certificate._x509",
    "ffi.NULL", "ffi.buffer", "ffi.callback", "ffi.cast", "ffi.from_buffer", "ffi.new", "ffi.string",
    "lib.BIO_free", "lib.BIO_get_mem_data", "lib.BIO_new", "lib.BIO_read", "lib.BIO_s_mem", "lib.BIO_write",
    "lib.ERR_GET_REASON", "lib.ERR_clear_error", "lib.ERR_get_error", "lib.ERR_reason_error_string",
    "lib.SSL_CTX_set_alpn_select_cb", "lib.SSL_CTX_set_verify", "lib.SSL_ERROR_WANT_READ", "lib.SSL_ERROR_ZERO_RETURN",
    "lib.SSL_MODE_AUTO_RETRY", "lib.SSL_MODE_ENABLE_PARTIAL_WRITE", "lib.SSL_MODE_RELEASE_BUFFERS",
    "lib.SSL_OP_NO_RENEGOTIATION",
    "lib.SSL_TLSEXT_ERR_ALERT_FATAL", "lib.SSL_TLSEXT_ERR_OK", "lib.SSL_VERIFY_FAIL_IF_NO_PEER_CERT",
    "lib.SSL_VERIFY_NONE", "lib.SSL_VERIFY_PEER", "lib.SSL_clear_mode", "lib.SSL_do_handshake",
    "lib.SSL_get0_verified_chain", "lib.SSL_get_client_random", "lib.SSL_get_error",
    "lib.SSL_get_ex_data_X509_STORE_CTX_idx",
    "lib.SSL_get_peer_cert_chain", "lib.SSL_get_verify_result", "lib.SSL_pending", "lib.SSL_read", "lib.SSL_session_reused",
    "lib.SSL_set_bio", "lib.SSL_shutdown", "lib.SSL_write",
    "lib.X509_STORE_CTX_get0_cert", "lib.X509_STORE_CTX_get1_chain", "lib.X509_STORE_CTX_get_error",
    "lib.X509_STORE_CTX_get_error_depth", "lib.X509_STORE_CTX_get_ex_data", "lib.X509_STORE_CTX_set_error",
    "lib.X509_free", "lib.X509_verify_cert_error_string",
    "lib.i2d_X509_bio", "lib.sk_X509_free", "lib.sk_X509_num", "lib.sk_X509_value",
)  # fmt: skip
"""Every private name in use, as ``owner.name``. The owner is a module (``SSL``), a class (``Connection``), an instance
(``connection``, ``context``, ``certificate``), or one of the two low-level bindings (``lib``, ``ffi``)."""


def _find_absent(owners: Mapping[str, object]) -> list[str]:
    """The required names that these owners lack."""
    named = ((name, *name.partition(".")[::2]) for name in REQUIRED)
    return [name for name, owner, attribute in named if owner in owners and not hasattr(owners[owner], attribute)]


def _find_missing() -> list[str]:
    """The required names that are missing. Names that later look-ups need are looked up first."""
    if absent := _find_absent({"SSL": SSL, "Connection": SSL.Connection}):
        return absent
    if absent := _find_absent({"lib": vars(SSL)["_lib"], "ffi": vars(SSL)["_ffi"]}):
        return absent
    context = SSL.Context(SSL.TLS_METHOD)
    if absent := _find_absent({"context": context, "certificate": crypto.X509()}):
        return absent
    return _find_absent({"connection": SSL.Connection(context, None)})


if _found := _find_missing():
    raise UsageError(
        f"the installed pyOpenSSL {OpenSSL.__version__} with cryptography {cryptography.__version__} has no "
        f"{', '.join(_found)}, which TLS is built on here: install the versions that this program's package requires"
    )

lib: Any = vars(SSL)["_lib"]
ffi: Any = vars(SSL)["_ffi"]


def take_errors() -> list[LibraryError]:
    """OpenSSL's error queue of this thread, the oldest first, and empties it: an entry that is left would be taken for the
    next connection's error."""
    found = []
    while code := lib.ERR_get_error():
        text = lib.ERR_reason_error_string(code)
        text = ffi.string(text).decode() if text != ffi.NULL else "protocol error"
        found.append(LibraryError(code >> 23 & 0xFF, lib.ERR_GET_REASON(code), text))  # ERR_GET_LIB is a macro
    return found


def encode(certificate: Any) -> bytes:
    """The DER of an ``X509 *``."""
    bio = lib.BIO_new(lib.BIO_s_mem())
    try:
        if lib.i2d_X509_bio(bio, certificate) != 1:
            raise MemoryError("OpenSSL could not encode a certificate")
        start = ffi.new("char **")
        size = lib.BIO_get_mem_data(bio, start)
        return bytes(ffi.buffer(start[0], size))
    finally:
        lib.BIO_free(bio)


def encode_stack(stack: Any) -> list[bytes]:
    """The DER of each certificate in a ``STACK_OF(X509) *``."""
    if stack == ffi.NULL:
        return []
    return [encode(lib.sk_X509_value(stack, index)) for index in range(lib.sk_X509_num(stack))]
