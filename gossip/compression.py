"""Codecs: arrays in, fewer bytes out."""

from typing import Protocol


class Codec(Protocol):
    """Turns an array into fewer bytes."""
