"""Sockets and TLS: from a connected socket to a verified peer and its verdict, and HTTP on top of it."""
