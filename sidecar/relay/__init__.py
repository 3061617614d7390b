"""Bytes between an app's socket and a TLS channel: one pure state machine, one poller, one task."""
