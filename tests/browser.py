"""A headless Chromium looking at TensorBoard on loopback."""

import contextlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")


@contextlib.contextmanager
def tensorboard(runs: Path, timeout: float = 120) -> Iterator[str]:
    """The address of a TensorBoard over ``runs``, up while the context lasts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["--logdir", str(runs), "--host", "127.0.0.1", "--port", str(port), "--reload_multifile=true"]
    server = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + timeout
        while True:
            try:
                urllib.request.urlopen(f"{address}/data/runs", timeout=5).read()
                break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                assert server.poll() is None, "TensorBoard ended"
                assert time.monotonic() < deadline, "TensorBoard does not answer"
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=30)


@contextlib.contextmanager
def browser(profile: Path, width: int = 1500, height: int = 1100) -> Iterator[Any]:
    """A selenium driver with a new profile, which asks nothing of any network but loopback."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
        f"--user-data-dir={profile}", f"--window-size={width},{height}",
    ):  # fmt: skip
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def text_of_page(driver: Any) -> str:
    """All text on the page, that inside the shadow roots of TensorBoard's older plugins and their frames included."""
    script = """
        const words = [];
        const walk = node => {
            if (node.nodeType === Node.TEXT_NODE) words.push(node.textContent);
            if (['SCRIPT', 'STYLE', 'TEMPLATE'].includes(node.nodeName)) return;
            if (node.shadowRoot) walk(node.shadowRoot);
            if (node.nodeName === 'IFRAME' && node.contentDocument) walk(node.contentDocument);
            node.childNodes.forEach(walk);
        };
        walk(document.body);
        return words.join(' ').replace(/\\s+/g, ' ');
    """
    return driver.execute_script(script)


def wait_for_text(driver: Any, *texts: str, timeout: float = 90) -> str:
    """The page's text, as soon as all of ``texts`` are in it; spaces, which elements make, are passed over."""
    deadline = time.monotonic() + timeout
    while True:
        page = text_of_page(driver)
        missing = [text for text in texts if text.replace(" ", "") not in page.replace(" ", "")]
        if not missing:
            return page
        assert time.monotonic() < deadline, f"not on the page: {missing}; it says: {page[:2000]}"
        time.sleep(0.5)
