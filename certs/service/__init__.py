"""The CA's server process.

``serve`` (start, stop, reload), ``listener`` (connections and their handshakes), ``api`` (the handlers of each path),
``limits`` (rate limits), ``metrics`` (for Prometheus), ``reports`` (the last of each sidecar), ``alarm_desk`` (the alarms of
the whole mesh), ``posting`` (sends them where mesh.yaml says), ``admin`` (shows both to the users of this machine).
"""
