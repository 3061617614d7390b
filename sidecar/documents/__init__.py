"""Text that people write, to checked values: YAML, positions, faults told all at once, addresses, durations. Pure."""
