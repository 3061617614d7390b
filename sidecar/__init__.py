"""A sidecar that carries a plaintext service's connections over mutual TLS 1.3.

One connection, top to bottom (``proxy/inbound.py`` and ``proxy/outbound.py`` are each one function that reads like this)::

    accept -> TLS handshake (deadline) -> identity -> policy -> dial -> relay -> one access-log line

The map
-------

One room (folder) a subject. A room may import the rooms above it and no other.

* ``sidecar.identity``: SPIFFE IDs, X.509-SVIDs, the judgement of a peer's certificate, the vocabulary of reasons
* ``sidecar.documents``: text that people write becomes checked values: YAML 1.2, positions, faults, addresses, durations
* ``sidecar.meanings``: what each word of logs and refusals means, its causes, what to run next
* ``sidecar.policy``: ``mesh.yaml``: the services of a mesh, who may call whom, and why
* ``sidecar.config``: ``sidecar.yaml`` and ``SIDECAR_…`` variables: one sidecar's wiring
* ``sidecar.host``: the machine: the process's limits and memory, files written whole, kept private and followed, commands
* ``sidecar.relay``: bytes between an app's socket and a TLS channel: the hot path
* ``sidecar.transport``: sockets, TLS (``tls`` and ``bindings`` alone import OpenSSL), handshake, verdict, HTTP/1.1
* ``sidecar.observe``: the access log, connection records, summaries, metrics, the admin port and its probe
* ``certs.protocol``: what a CA and a sidecar agree on: paths, headers, documents, certificates; the client
* ``certs.authority``: the CA's own keys and certificates on disk
* ``certs.store``: what the CA remembers
* ``certs.registrar``: who gets a certificate, what is revoked, which roots are trusted
* ``certs.service``: ``certs serve``: the process that sidecars talk to
* ``certs.cli``: the ``certs`` command; no logic
* ``sidecar.proxy``: one connection, top to bottom; the listeners; the connections that live
* ``sidecar.agent``: this sidecar's own identity: enrolment, renewal, what it accepts from the CA and keeps on disk
* ``sidecar.lifecycle``: one sidecar from start to drain: reload, status
* ``sidecar.connect``: ``sidecar connect``: a person's pass becomes a local port
* ``sidecar.dev``: ``sidecar dev``: a whole mesh in one process
* ``sidecar.inject``: ``sidecar inject``: a Compose application becomes a mesh
* ``sidecar.explain``: what happened to one connection, from the logs of both ends
* ``sidecar.learn``: what was seen becomes rules; what a changed mesh file would refuse of it
* ``sidecar.verify``: ``sidecar verify``: tries every promise of a running mesh, and tells what was seen
* ``sidecar.dashboard``: ``sidecar dashboard``: the mesh in a browser, made of what the CA keeps
* ``sidecar.cli``: the ``sidecar`` command; no logic
* ``sidecar.demo``: ``make demo``: a mesh of real processes, used and attacked

Pure (no trio, no sockets, no OpenSSL, no clock: time is an argument): the rooms ``identity``, ``documents``, ``meanings``,
``policy`` and ``config``, every other module whose docstring says "Pure", and nothing else.

``tests/unit/test_layout.py`` enforces this map. Everything fails closed: what was not expressly allowed is refused, with
one of the words of ``identity.reasons`` and a sentence that says what was met, what was expected and what to do.
"""

__version__ = "0.1.0"
