"""The machine under a process: its memory and limits, files that are written whole, kept private, and followed."""
