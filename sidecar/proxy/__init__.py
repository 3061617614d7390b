"""Connections, from accept to close.

``server`` (accept, record, drain), ``listener`` (one listening socket), ``waiting`` (listeners that open later),
``inbound`` and ``outbound`` (one connection each), ``cleartext`` (inbound, without TLS), ``own_port`` (``mesh-admin``),
``probing`` (what `sidecar probe` asks for), ``draining`` (what a connection holds up), ``loops`` (callers that are
sidecars), ``peer`` (handshake to verified peer), ``introduce`` (tells the app who calls), ``channels`` (those that are
kept), ``lines`` (the records of one socket), ``carry`` (relay to the end), ``live`` (the registry of connections),
``node`` (what all connections share, and the snapshot that a reload replaces), ``suspects`` (what they met that may be an
attack).
"""
