"""Bytes between an app's socket and a TLS channel: the hot path.

``duplex`` (one connection as a pure state machine), ``poller`` (which sockets are ready), ``relay`` (the one task that pumps
all connections).
"""
