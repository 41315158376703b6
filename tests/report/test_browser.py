"""The page in a real browser: it renders, says nothing on the console, and asks the network for nothing."""

import functools
import http.server
import shutil
import subprocess
import threading

import pytest
from made_up import make_finding
from reading import Page, page_of

from muonlab.report import page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next((path for path in map(shutil.which, BROWSERS) if path), None)

pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"no browser found: none of {', '.join(BROWSERS)}")


def browse(address: str, profile, *flags: str) -> subprocess.CompletedProcess:
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        f"--user-data-dir={profile}", "--enable-logging=stderr", "--v=0",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--virtual-time-budget=2000", *flags, address,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)


def test_renders_without_a_word_on_the_console(tmp_path):
    finding = make_finding()
    page.write(tmp_path / "report.html", page_of(make_finding))
    result = browse((tmp_path / "report.html").as_uri(), tmp_path / "profile", "--dump-dom")
    shown = Page(result.stdout)
    assert finding.verdict in shown.text
    assert "data-field" in result.stdout and result.stdout.count("<svg") == 3 + len(finding.slices)
    assert [line for line in result.stderr.splitlines() if "CONSOLE" in line] == []


def test_the_console_check_can_fail(tmp_path):
    (tmp_path / "bad.html").write_text(
        "<!doctype html><img src='http://example.invalid/x.png'><script>nothing()</script>"
    )
    result = browse((tmp_path / "bad.html").as_uri(), tmp_path / "profile", "--dump-dom")
    assert "CONSOLE" in result.stderr


def test_asks_for_the_file_and_nothing_else(tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    page.write(site / "report.html", page_of(make_finding))
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        browse(f"http://127.0.0.1:{server.server_port}/report.html", tmp_path / "profile", "--dump-dom")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert asked == ["/report.html"]


def test_prints(tmp_path):
    page.write(tmp_path / "report.html", page_of(make_finding))
    target = tmp_path / "report.pdf"
    browse((tmp_path / "report.html").as_uri(), tmp_path / "profile", f"--print-to-pdf={target}")
    content = target.read_bytes()
    assert content.startswith(b"%PDF") and 2 <= content.count(b"/Type /Page\n") <= 8
