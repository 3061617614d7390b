"""Parses text that people write into checked values: YAML, positions, all errors at once, addresses, durations. Pure."""
