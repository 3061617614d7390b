"""The hot path: bytes between an app's socket and a TLS channel.

``duplex`` (one connection as a pure state machine), ``frames`` (streams that follow one another on a kept channel),
``bare`` (the stream of a peer without TLS), ``poller`` (which sockets are ready), ``relay`` (the one task that moves the
bytes of all connections), ``strand`` (a connection as a generator, without a task), ``liveness`` (hosts that are gone).
Where the app is told who calls in each HTTP request: ``http_cuts`` (where a request ends, read strictly), ``exchanges``
(requests and answers, one at a time) and ``http_duplex`` (a duplex of these).
"""
