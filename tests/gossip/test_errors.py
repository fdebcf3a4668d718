"""Errors that are told apart by more than their class."""

from __future__ import annotations

import errno

import pytest

from gossip.errors import ran_out_of_files


@pytest.mark.parametrize(("number", "ran_out"), [(errno.EMFILE, True), (errno.ENFILE, True), (errno.ENOENT, False)])
def test_that_no_more_files_may_be_opened_is_told_from_other_errors(number: int, ran_out: bool) -> None:
    assert ran_out_of_files(OSError(number, "")) == ran_out
