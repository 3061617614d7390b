"""The bundled mini-CA, in rooms. Each imports only rooms above it in this list, and ``sidecar``'s lower layers.

* ``protocol``: all that the CA and its sidecars agree on, and the sidecar's client. The only room that ``sidecar`` imports
* ``authority``: the CA's own keys and certificates, and the directory that holds them
* ``store``: what the CA remembers, in SQLite or PostgreSQL, with its audit log (independent of ``authority``)
* ``registrar``: who gets a certificate, what is revoked, which roots are trusted: each decision is one transaction
* ``service``: the process that sidecars talk to: its listener, its API, its limits
* ``cli``: the commands; no logic

One certificate, top to bottom: ``sidecar.transport.http1`` reads a request, ``service.api`` says what its path answers,
``registrar.registrar`` decides, signs and remembers in one transaction of ``store.store``, which ``store.writer`` brings to
the disk before the answer leaves.

It may import ``sidecar``'s pure modules (the identity rules are the same on both sides) and the edge under both programs:
TLS, sockets, streams, the log. There is one implementation of TLS here, and the CA is judged by it as every peer is.
"""
