"""The reports, opened in headless Chromium without a network: no errors, and plots that can be seen."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from click.testing import CliRunner
from playwright.sync_api import Browser, sync_playwright

from p2p.cli.main import main
from p2p.lab import results

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed; .ci/chromium installs it"),
]

SWEEPS = {
    "consensus": ("--topology", "ring,one-peer-exponential", "--peers", "8", "--rounds", "20"),
    "convergence": ("--topology", "ring", "--peers", "4", "--rounds", "10", "--rows", "80", "--algorithm", "dpsgd"),
    "faults": ("--peers", "8", "--rounds", "10", "--loss", "0,0.2", "--churn", "0", "--crash", "0,0.2"),
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    sandbox = ["--no-sandbox"] if os.getuid() == 0 else []  # Chromium refuses a sandbox to root
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield chromium
        chromium.close()


@pytest.mark.parametrize("experiment", SWEEPS)
def test_a_report_opens_without_a_network_and_shows_its_plots(
    browser: Browser, tmp_path: Path, experiment: str
) -> None:
    file = tmp_path / "out.json"
    done = CliRunner().invoke(main, ["lab", experiment, *SWEEPS[experiment], "--json", str(file)])
    assert done.exit_code == 0, done.output
    look_at(browser, tmp_path / "out.html", rows=len(results.read(file).rows))


def test_a_comparison_opens_too(browser: Browser, tmp_path: Path) -> None:
    file, page = tmp_path / "out.json", tmp_path / "compare.html"
    sweep = CliRunner().invoke(main, ["lab", "consensus", *SWEEPS["consensus"], "--json", str(file), "--no-html"])
    assert sweep.exit_code == 0, sweep.output
    done = CliRunner().invoke(main, ["lab", "compare", str(file), str(file), "--html", str(page)])
    assert done.exit_code == 0, done.output
    look_at(browser, page, rows=2)


def look_at(browser: Browser, file: Path, rows: int) -> None:
    """Open a report as somebody without a network would, and hold what is seen against what should be."""
    context = browser.new_context(offline=True)
    page = context.new_page()
    complaints: list[str] = []
    requested: list[str] = []
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
    page.on("request", lambda request: requested.append(request.url))
    address = file.as_uri()
    page.goto(address, wait_until="load")

    assert complaints == []
    assert [url for url in requested if not url.startswith("data:")] == [address]
    plots = page.locator("figure > svg").all()
    assert len(plots) >= 2
    for plot in plots:
        box = plot.bounding_box()
        assert box is not None
        assert box["width"] > 300
        assert box["height"] > 200
        pixels = matplotlib.image.imread(io.BytesIO(plot.screenshot()))[..., :3]
        colored = np.ptp(pixels, axis=2) > 0.2  # neither white nor the gray of axes and text
        assert np.count_nonzero(colored) > 60, "the lines are not seen"  # two round markers have about 100
    # what theory or one place says is dashed
    dashed = page.locator("figure > svg path").evaluate_all(
        "paths => paths.filter(path => getComputedStyle(path).strokeDasharray !== 'none').length"
    )
    assert dashed >= 1
    assert page.locator("table tbody tr").count() == rows
    assert page.locator("script").count() == 0
    context.close()
