"""One connection, top to bottom, and the listeners that accept it.

``server`` (listeners), ``inbound`` and ``outbound`` (one connection each), ``peer`` (handshake to verified peer), ``carry``
(relay it to its end), ``live`` (connections that were let in), ``node`` (what all connections share, and the snapshot that a
reload replaces).
"""
