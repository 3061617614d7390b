"""The hot path: bytes between an app's socket and a TLS channel.

``duplex`` (one connection as a pure state machine), ``frames`` (streams that follow one another on a kept channel),
``poller`` (which sockets are ready), ``relay`` (the one task that moves the bytes of all connections), ``strand`` (a
connection as a generator, without a task), ``liveness`` (hosts that are gone).
"""
