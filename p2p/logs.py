"""Loggers that may have texts of other processes in their records: no control character of these reaches a terminal."""

from __future__ import annotations

import logging

from gossip.errors import printable


def logger(name: str) -> logging.Logger:
    """The logger with this name, whose records are printable."""
    found = logging.getLogger(name)
    found.addFilter(_printed)  # once, however often
    return found


def _printed(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(record.getMessage()), ()
    return True
