"""The bundled mini-CA.

* **pure**: ``profile`` (what is in a certificate), ``encodings``, ``fields`` and ``inspection`` (what is in somebody's)
* **I/O**: ``files`` (keys on disk), ``authority`` (the CA on disk)
* **command line**: ``cli``; no logic

It may import the pure modules of ``sidecar`` (the identity rules are the same on both sides), and nothing else of it.
"""
