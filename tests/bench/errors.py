"""What can go wrong in a comparison, worded for people."""

from __future__ import annotations


class BenchError(Exception):
    """The run is void: something failed, or a contestant does not keep the conditions. No figures are printed."""


class MissingError(Exception):
    """Something that nothing can be measured without is not installed; the message says how to get it."""
