"""Questions that are asked from inside of containers."""

from __future__ import annotations

from tests.e2e.engine import Application

REACH = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), 2) as s:
        s.settimeout(float(sys.argv[3]))
        try:
            print("closed" if s.recv(1) == b"" else "spoke")
        except TimeoutError:
            print("open")
except OSError as error:
    print(type(error).__name__)
"""
"""Whether a port can be reached from a container, by host, port, and how many seconds a connection must last to count."""


def protected(application: Application) -> str:
    page = application.page()
    return page if "costs" in page else ""
