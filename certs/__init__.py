"""The bundled mini-CA.

One certificate, top to bottom: ``sidecar.transport.http1`` reads a request, ``service`` says what its path answers,
``registrar`` decides, signs and remembers in one transaction of the ``store``, which ``writer`` brings to the disk before the answer
leaves.

* **pure**: what is in a certificate: ``profile``; in somebody's: ``encodings``, ``fields``, ``inspection``; in the CA's own
  files: ``pemfiles``; what may be asked for: ``issuance``, ``passes``, ``limits``; what is told: ``trust`` (the signed
  documents), ``audit`` (the chain)
* **I/O**: ``files`` (keys on disk), ``authority`` (the CA on disk), ``store``, ``writer``; functions of the
  store: ``registrar`` (who gets a certificate), ``standing`` (bundles, revocations, who has heard), ``rotation``
* **wiring**: ``service`` (the API), ``guesses``, ``connections`` (who is let in), ``serve`` (the process), ``metrics``;
  ``client`` is the other end, used by sidecars
* **command line**: ``cli``; no logic

It may import ``sidecar``'s pure modules (the identity rules are the same on both sides) and the edge under both programs:
TLS, sockets, streams, the log. There is one implementation of TLS here, and the CA is judged by it as every peer is.
"""
