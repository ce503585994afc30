"""TensorBoard in a real browser: a person who opens the dashboard finds what they look for."""

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="needs Chromium and chromedriver on the PATH"
    ),
]

# All displayed nodes of a page, shadow trees included.
WALK = """
const walk = (node, see) => {
  if (node.nodeType === Node.ELEMENT_NODE) {
    if (['STYLE', 'SCRIPT', 'TEMPLATE'].includes(node.tagName)) return;
    if (getComputedStyle(node).display === 'none' && !hidden) return;
  }
  see(node);
  for (const child of (node.shadowRoot ? node.shadowRoot.childNodes : [])) walk(child, see);
  for (const child of node.childNodes) walk(child, see);
};
const found = [];
"""
SEEN = "const hidden = false;" + WALK
TEXT = (
    SEEN
    + """
walk(document.body, n => n.nodeType === Node.TEXT_NODE && found.push(n.textContent));
return found.join(' ').replace(/\\s+/g, ' ');
"""
)
PICTURES = (
    SEEN
    + """
walk(document.body, n => n.tagName === 'IMG' && n.naturalWidth > 200 && found.push(n.src));
return found;
"""
)
LINES = (
    SEEN
    + """
const long = n => n.getAttribute('d') && n.getAttribute('d').length > 20;
const drawn = n => long(n) && n.getBoundingClientRect().width > 50;
walk(document.body, n => n.tagName === 'path' && drawn(n) && found.push(n));
return found.length;
"""
)
PICK = (
    "const hidden = true;"
    + WALK
    + """
const asked = n => n.tagName === 'PAPER-ITEM' && n.textContent.trim() === arguments[0];
walk(document.body, n => asked(n) && found.push(n));
found[0].click();
"""
)


@pytest.fixture(scope="module")
def address(three_runs: list[Path]) -> Iterator[str]:
    """Serve the dashboard over three runs."""
    output = three_runs[0].parents[1]
    line = [sys.executable, "-m", "kd.dashboard", str(output), "--host", "127.0.0.1", "--port", "0"]
    board = subprocess.Popen(
        line,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert board.stdout
        for said in board.stdout:
            if found := re.search(r"http://127\.0\.0\.1:\d+/", said):
                yield found[0]
                break
        else:
            pytest.fail("TensorBoard did not say where it is")
    finally:
        board.send_signal(signal.SIGTERM)
        board.communicate(timeout=20)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for word in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "window-size=1800,1300",
    ):
        options.add_argument(f"--{word}")
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def wait(browser: Any, tmp_path: Path) -> Callable[[str, Callable[[Any], bool]], Any]:
    """Wait until a script returns the wanted value. Leaves a screenshot on failure."""
    from selenium.common.exceptions import TimeoutException
    from selenium.webdriver.support.ui import WebDriverWait

    def until(script: str, wanted: Callable[[Any], bool]) -> Any:
        answers = []

        def asked(driver: Any) -> bool:
            answers.append(driver.execute_script(script))
            return wanted(answers[-1])

        with contextlib.suppress(TimeoutException):
            WebDriverWait(browser, 30).until(asked)
        browser.save_screenshot(str(tmp_path / "seen.png"))
        assert wanted(answers[-1]), f"{tmp_path / 'seen.png'}: {str(answers[-1])[:3000]}"
        return answers[-1]

    return until


def show(browser: Any, address: str, tab: str) -> None:
    # Otherwise only the fragment of the address changes, and no page is loaded
    browser.get("about:blank")
    browser.get(f"{address}#{tab}")


NAMES = ("digits_kd_T2.0_a0.5_s0", "digits_kd_Tlinear-9-1_a0.5_s0", "digits_dkd_T4.0_s0")


def test_scalars(browser: Any, address: str, wait: Any) -> None:
    show(browser, address, "scalars")
    stages = [f"{NAMES[0]}/{stage}" for stage in ("teacher", "baseline", "distill")]
    text = wait(
        TEXT, lambda t: all(word in t for word in (*NAMES, *stages, "lr", "result", "train", "val"))
    )
    assert f"{NAMES[1]}/teacher" not in text  # its curves are there already
    assert not re.search(r"[0-9a-f]{16}", text), "keys of the store"
    wait(LINES, lambda count: count >= 4)


def test_custom_scalars(browser: Any, address: str, wait: Any) -> None:
    show(browser, address, "custom_scalars")
    wait(
        TEXT,
        lambda t: (
            "Student, baseline, teacher" in t and "validation accuracy" in t and "Matches (5)" in t
        ),
    )
    wait(LINES, lambda count: count >= 5 + 5)


def test_hparams(browser: Any, address: str, wait: Any, three_runs: list[Path]) -> None:
    show(browser, address, "hparams")
    accuracy = [
        json.loads((folder / "report.json").read_text())["models"][2]["test"]["accuracy"]
        for folder in three_runs
    ]
    cells = [
        *NAMES,
        "2.0000",
        "9.0000",
        "4.0000",
        "kd",
        "dkd",
        "MLP(hidden=[8])",
        *(f"{a:#.5g}" for a in accuracy),
    ]
    columns = (
        "alpha",
        "method",
        "seed",
        "student",
        "T",
        "test accuracy",
        "validation accuracy",
        "gain",
        "agreement",
    )
    wait(TEXT, lambda t: all(word in t for word in (*cells, *columns)))


def test_the_table_sorts_numbers_as_numbers(browser: Any, address: str, wait: Any) -> None:
    def order(text: str) -> list[str]:
        return re.findall(r"\b(?:2|4|9)\.0000\b", text)

    show(browser, address, "hparams")
    wait(TEXT, lambda text: len(order(text)) == 3)
    browser.execute_script(PICK, "T")
    for direction, wanted in (
        ("Ascending", "2.0000 4.0000 9.0000"),
        ("Descending", "9.0000 4.0000 2.0000"),
    ):
        browser.execute_script(PICK, direction)
        wait(TEXT, lambda text, wanted=wanted: " ".join(order(text)) == wanted)


def test_images(browser: Any, address: str, wait: Any) -> None:
    show(browser, address, "images")
    words = (
        "confusion/teacher",
        "confusion/baseline",
        "confusion/student",
        "disagreement",
        "learning_curves",
        "views",
    )
    wait(TEXT, lambda text: all(word in text for word in (*words, *NAMES, "reliability")))

    def confusions(sources: list[str]) -> int:
        keys = [re.search(r"blob_key=([\w=-]+)", source) for source in sources]
        said = [
            base64.urlsafe_b64decode(key[1] + "=" * (-len(key[1]) % 4)).decode()
            for key in keys
            if key
        ]
        return sum("confusion/" in each for each in said)

    wait(PICTURES, lambda sources: confusions(sources) == 3 + 1 + 1)


def test_text(browser: Any, address: str, wait: Any) -> None:
    show(browser, address, "text")
    wait(TEXT, lambda t: "_target_: kd.nets.mlp.MLP" in t and "report" in t)
