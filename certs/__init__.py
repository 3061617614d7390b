"""The bundled mini-CA, in sub-packages. Each imports only those above it in this list, and ``sidecar``'s lower layers.

* ``protocol``: what the CA and its sidecars agree on, and the sidecar's client. The only part that ``sidecar`` imports
* ``authority``: the CA's own keys and certificates, and the directory that holds them
* ``store``: the CA's records in SQLite or PostgreSQL, with the audit log (independent of ``authority``)
* ``registrar``: issuing, revocation and the trusted roots; each decision is one transaction
* ``service``: the server process: its listener, its API, its limits
* ``cli``: the commands; no logic

How one certificate is issued: ``sidecar.transport.http1`` reads a request and ``service.api`` handles its path.
``registrar.registrar`` decides, signs and records in one transaction of ``store.store``. ``store.writer`` commits it to disk
before the answer is sent.

The CA may import ``sidecar``'s pure modules (the identity rules are the same on both sides) and the I/O layer that both
programs share: TLS, sockets, streams, the log. There is one implementation of TLS; it verifies the CA like any other peer.
"""
