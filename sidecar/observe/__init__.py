"""What a sidecar tells: its log, its connection records, its metrics, its admin port, and how that is read."""
