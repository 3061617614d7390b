"""Sockets and TLS: from a connected socket to an authenticated peer and its verdict.

``sockets``, ``accepting`` (the accept loop), ``lobby`` (where accepted sockets wait for their caller's first message),
``staggered`` (several addresses, RFC 8305), ``dial`` (upstreams, DNS, fail-over), ``gate`` (few handshake steps per tick),
``strangers`` (the budget for connections not judged yet), ``bindings`` (the parts of OpenSSL in use), ``tls`` and
``tls_data`` (its data half), ``tls_errors`` (alerts and verification errors), ``client_hello`` (what a caller offers),
``handshake``, ``verdict`` (the first frame of ``mesh/1``), ``streams`` (those between two streams of ``mesh/2``),
``stream`` (a TLS channel to read and write), ``http1``, ``proxy_protocol`` (a header that names the caller to an app).
"""
