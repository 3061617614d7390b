"""``sidecar explain CONNECTION_ID``: what happened to one connection, from the logs of both ends.

``records`` (finds its lines among any text), ``story`` (the document, and the text for people), ``sources`` (where lines
come from: files, Docker Compose, a running sidecar).
"""
