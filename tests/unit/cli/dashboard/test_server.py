"""Who gets an answer from the page's server, and what the answers carry."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from types import MappingProxyType

import pytest
from starlette.testclient import TestClient

from sandboxpool.cli.dashboard.lookups import Lookups
from sandboxpool.cli.dashboard.pages import Pages
from sandboxpool.cli.dashboard.server import Site
from sandboxpool.cli.dashboard.watch import Watcher
from sandboxpool.client.api import Api
from sandboxpool.client.nonblocking import AsyncIo
from support import eventually
from support.clusterserver import ClusterServer
from support.fleetobjects import broken
from support.scriptedcli import Cli
from support.scriptedcluster import settings

TOKEN = "a-token-of-the-tests"
PORT = 8700
HOST = MappingProxyType({"Host": f"127.0.0.1:{PORT}"})


@pytest.fixture
def site(cluster: ClusterServer) -> Iterator[TestClient]:
    cluster.put(*broken())
    api = Api(AsyncIo(), settings(host=cluster.url))
    watcher = Watcher(api, "team")
    application = Site(watcher, Pages(watcher, Lookups(api), "cluster", None)).application(
        TOKEN, PORT
    )
    with TestClient(application, base_url=f"http://127.0.0.1:{PORT}") as client:
        eventually(lambda: "team/browser" in client.get(f"/{TOKEN}/").text)
        yield client


def test_the_page_tells_the_cause(site: TestClient) -> None:
    page = site.get(f"/{TOKEN}/").text
    assert "sandboxpool/team/browser" in page
    assert "NodesServing=False, NodeQuarantined: 2 of 2 nodes are quarantined" in page
    assert "ShimMissing on node-a, node-b: the shim binary containerd-shim-kata-v2" in page
    assert 'time datetime="2026-01-01T11:50:00Z"' in page


@pytest.mark.parametrize("path", ["/", "/wrong/", f"/{TOKEN}", f"/{TOKEN}x/", "/stream", "//"])
def test_nobody_reads_anything_without_the_token(site: TestClient, path: str) -> None:
    answer = site.get(path, follow_redirects=False)
    assert answer.status_code == 404
    assert "team" not in answer.text


@pytest.mark.parametrize(
    "host",
    ["evil.example", f"evil.example:{PORT}", "127.0.0.1", "127.0.0.1:1", "localhost.evil:8700", ""],
)
def test_a_name_that_was_bent_to_the_loopback_address_is_refused(
    site: TestClient, host: str
) -> None:
    answer = site.get(f"/{TOKEN}/", headers={"Host": host})
    assert answer.status_code == 421
    assert "team" not in answer.text


def test_localhost_is_a_name_of_the_server(site: TestClient) -> None:
    assert site.get(f"/{TOKEN}/", headers={"Host": f"localhost:{PORT}"}).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_only_get_is_answered(site: TestClient, method: str) -> None:
    assert site.request(method, f"/{TOKEN}/").status_code == 405


@pytest.mark.parametrize("path", [f"/{TOKEN}/", "/", f"/{TOKEN}/static/page.js"])
def test_every_answer_forbids_what_the_page_does_not_need(site: TestClient, path: str) -> None:
    headers = site.get(path).headers
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in policy
    assert headers["Cache-Control"] == "no-store"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("name", ["..%2fserver.py", "nothing.js", "../server.py", "page.html"])
def test_no_other_file_is_served(site: TestClient, name: str) -> None:
    assert site.get(f"/{TOKEN}/static/{name}").status_code == 404


def test_the_page_names_nothing_outside(site: TestClient) -> None:
    page = site.get(f"/{TOKEN}/").text
    found = re.findall(r'(?:src|href|action)="([^"]+)"', page)
    assert found
    assert not [one for one in found if "//" in one]
    # The policy would refuse them.
    assert not re.findall(r'<script(?! src)|style="|\son\w+="', page)


def test_what_objects_say_is_text_and_no_markup(cluster: ClusterServer, site: TestClient) -> None:
    hostile = next(one for one in reversed(broken()) if one["metadata"]["name"] == "browser")
    hostile["status"]["conditions"][1]["message"] = "<img src=x onerror=alert(1)>"
    cluster.put(hostile)
    page = eventually(lambda: site.get(f"/{TOKEN}/").text, until=lambda text: "onerror" in text)
    assert "<img" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page


def test_without_the_packages_the_command_says_what_to_install() -> None:
    script = (
        "import sys; sys.modules['uvicorn'] = None\n"
        "from sandboxpool.cli.main import main\n"
        "sys.argv = ['x', 'dashboard']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "uvicorn" in done.stderr
    assert "pip install 'sandboxpool[dashboard]'" in done.stderr


def test_the_plugin_does_without_the_packages() -> None:
    script = (
        "import sys\nfrom sandboxpool.cli import main\nmain.build()\n"
        "print([n for n in ('uvicorn', 'starlette', 'jinja2') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_port_that_is_taken_is_named(cluster: ClusterServer, cli: Cli) -> None:
    done = cli("dashboard", "--port", str(cluster.port))
    assert done.exit_code == 1
    assert f"cannot listen on 127.0.0.1:{cluster.port}" in done.stderr
