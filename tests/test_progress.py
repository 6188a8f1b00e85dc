"""Bars on a terminal, in a notebook and in a log file."""

import io
import sys

import pytest

from gaternet_jax.progress import progress_bar


@pytest.fixture
def show(monkeypatch):
    """A function: what a bar of three steps writes to this stderr."""

    def run(stream):
        monkeypatch.setattr(sys, "stderr", stream)
        with progress_bar("Reading", 3, unit="file") as bar:
            bar.update(3)
        return stream.getvalue()

    return run


def test_lines_in_a_log_file(show):
    lines = show(io.StringIO()).splitlines()
    assert len(lines) == 2 and "\r" not in "".join(lines)
    assert lines[0].startswith("Reading:   0%") and lines[1].startswith("Reading: 100%")


@pytest.mark.parametrize("module", ["ipykernel.iostream", "terminal"])
def test_one_line_that_is_written_over(show, module):
    stream = type("OutStream", (io.StringIO,), {"__module__": module, "isatty": lambda self: module == "terminal"})
    written = show(stream())
    assert written.count("\n") == 1 and written.endswith("\n")  # after the last state
    assert "\rReading: 100%" in written
