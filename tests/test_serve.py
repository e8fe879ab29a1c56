"""`sapflow sanctum --serve`: the app in a browser, on this machine alone."""

import http.client
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from commands import SAPFLOW, finish, refused, started, without
from journals import PATIENCE
from sanctum_events import demo_run
from sapflow.telemetry.journal import Journal

pytest.importorskip("textual_serve")

# Keeps what the server sends to the page, as text: what is on the screen is drawn on a canvas.
LISTEN = """
const Plain = window.WebSocket;
window.received = "";
window.WebSocket = class extends Plain {
  constructor(...args) {
    super(...args);
    this.addEventListener("message", async (event) => {
      const data = event.data;
      const bytes = data instanceof Blob ? await data.arrayBuffer() : data;
      window.received += typeof bytes === "string" ? bytes : new TextDecoder().decode(bytes);
    });
  }
};
"""


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, in a directory whose name a shell would stumble over."""
    run_dir = tmp_path_factory.mktemp("runs") / "it's $(touch owned); a run"
    run_dir.mkdir()
    journal = Journal(run_dir)
    for event in demo_run(completed=True):
        journal.emit(event)
    journal.close()
    return run_dir


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def port(run_dir: Path) -> Iterator[int]:
    port = free_port()
    with started((*SAPFLOW, "sanctum", str(run_dir), "--serve", "--port", str(port)), run_dir) as process:
        assert process.stdout is not None
        assert f"http://localhost:{port}" in process.stdout.readline()
        deadline = time.monotonic() + PATIENCE
        while not listens(port):
            assert time.monotonic() < deadline
            time.sleep(0.02)  # it listens right after it has said so
        yield port


def answer(port: int, **headers: str) -> tuple[int, str]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as connection:
        connection.request("GET", "/", headers=headers)
        with connection.getresponse() as response:
            return response.status, response.getheader("Content-Security-Policy") or ""


def test_only_pages_of_its_own_are_answered(port: int) -> None:
    status, policy = answer(port)
    assert status == 200
    assert f"ws://localhost:{port}" in policy
    assert "googleapis" not in policy
    assert answer(port, Origin=f"http://localhost:{port}")[0] == 200
    assert answer(port, Origin="https://elsewhere.example")[0] == 403
    assert answer(port, Origin="http://localhost:1")[0] == 403
    assert answer(port, Origin="null")[0] == 403
    assert answer(port, Host=f"rebound.example:{port}")[0] == 403


def test_what_cannot_be_served_is_one_line(run_dir: Path, port: int) -> None:
    base = (*SAPFLOW, "sanctum", str(run_dir), "--serve")
    refused(finish((*base, "--host", "0.0.0.0"), run_dir), "0.0.0.0", "ssh tunnel")
    refused(finish((*base, "--port", "0"), run_dir), "--port 0")
    refused(finish(without("textual_serve", *base[3:]), run_dir), "sapflow[serve]")
    taken = finish((*base, "--port", str(port)), run_dir)
    assert taken.returncode == 1
    assert "in use" in taken.stderr
    assert "Traceback" not in taken.stderr


def test_a_card_is_clicked_in_a_browser_and_the_detail_opens(port: int, run_dir: Path) -> None:
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("no chromium with a chromedriver here")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1000,700"):
        options.add_argument(argument)
    service = webdriver.ChromeService(shutil.which("chromedriver"), log_output=subprocess.DEVNULL)
    with webdriver.Chrome(options, service) as browser:
        browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": LISTEN})
        browser.get(f"http://127.0.0.1:{port}/")

        def wait_for(words: str) -> None:
            deadline = time.monotonic() + PATIENCE
            while words not in browser.execute_script("return window.received"):
                assert time.monotonic() < deadline, f"never came: {words}"
                time.sleep(0.1)  # between two looks at the page

        wait_for("env 03")
        terminal = browser.find_element("css selector", ".xterm-screen")
        # The first card lies in the upper left, below header, counts and view.
        action = webdriver.ActionChains(browser)
        action.move_to_element_with_offset(
            terminal, 80 - terminal.size["width"] // 2, 120 - terminal.size["height"] // 2
        )
        action.click().perform()
        wait_for("EXPLODING")
        wait_for("entering")
    assert not (run_dir / "owned").exists()
