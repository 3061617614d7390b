"""The hot path: bytes between an app's socket and a TLS channel.

``duplex`` (one connection as a pure state machine), ``poller`` (which sockets are ready), ``relay`` (the one task that moves
the bytes of all connections), ``liveness`` (hosts that are gone).
"""
