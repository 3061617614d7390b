"""The bundled mini-CA: what is in a certificate (``profile``), making them on disk (``authority``, over ``files``), and
reading them (``inspection``).

It may import the pure modules of ``sidecar`` (the identity rules are the same on both sides), and nothing else of it.
"""
