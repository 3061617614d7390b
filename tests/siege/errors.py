"""What can go wrong in a siege, worded for people."""

from __future__ import annotations


class InvalidError(Exception):
    """The run says nothing about the product: the rig, not what is besieged, failed."""


class MissingError(Exception):
    """Something that no siege can do without is not there; the message says what, and how to get it."""
