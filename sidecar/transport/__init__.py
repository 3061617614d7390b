"""Sockets and TLS: from a connected socket to a judged peer and its verdict.

``sockets``, ``accepting`` (the accept loop), ``dial`` (upstreams, DNS, fail-over), ``gate`` (a few handshakes a tick),
``bindings`` (what is used of OpenSSL), ``tls``, ``tls_errors`` (alerts and verification errors), ``handshake``, ``verdict``
(the first frame of ``mesh/1``), ``stream`` (a TLS channel to read and write), ``http1``.
"""
