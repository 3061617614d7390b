"""The CA's server process.

``serve`` (start, stop, reload), ``listener`` (connections and their handshakes), ``api`` (the handlers of each path),
``limits`` (rate limits), ``metrics`` (for Prometheus).
"""
