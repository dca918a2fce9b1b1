"""Kubeconfigs as people and clouds write them, and tokens that are rotated in place."""

import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import aiohttp
import kopf
import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer

from sandboxpool.kube import credentials
from sandboxpool.kube.client import ApiClient
from sandboxpool.kube.credentials import Connection, CredentialsError, connection_info, token_source
from sandboxpool.kube.errors import UnknownOutcomeError


class Kubeconfig:
    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.path = folder / "config"
        monkeypatch.setenv("KUBECONFIG", str(self.path))

    def write(self, user: dict[str, Any], **cluster: Any) -> None:
        config = {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "clusters": [{"name": "k", "cluster": {"server": "https://127.0.0.1:1", **cluster}}],
            "users": [{"name": "u", "user": user}],
        }
        self.path.write_text(yaml.safe_dump(config), encoding="utf-8")


@pytest.fixture
def kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kubeconfig:
    return Kubeconfig(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("user", "cluster", "named"),
    [
        ({"exec": {"command": "aws", "apiVersion": "v1"}}, {}, "exec"),
        ({"auth-provider": {"name": "gcp"}}, {}, "auth-provider"),
        ({"token": "t", "as": "somebody"}, {}, "as"),
        ({"username": "me"}, {}, "password"),
        ({"token": "t"}, {"tls-server-name": "api"}, "tls-server-name"),
        ({"token": "t"}, {"proxy-url": "socks5://127.0.0.1:1"}, "proxy-url"),
        ({"token": "t"}, {"server": ""}, "server"),
        ({"tokenFile": "/nowhere/token"}, {}, "/nowhere/token"),
    ],
)
def test_what_is_not_supported_is_refused_by_name_and_with_a_cure(
    user: dict[str, Any], cluster: dict[str, Any], named: str, kubeconfig: Kubeconfig
) -> None:
    kubeconfig.write(user, **cluster)
    with pytest.raises(CredentialsError, match=named) as caught:
        connection_info()
    assert str(kubeconfig.path) in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "[]", "current-context: c", "contexts: 5", "users: [{}]", "{", "\x00"]
)
def test_what_is_no_kubeconfig_is_refused(text: str, kubeconfig: Kubeconfig) -> None:
    kubeconfig.path.write_text(text, encoding="utf-8")
    with pytest.raises(CredentialsError, match="KUBECONFIG"):
        connection_info()


def test_a_token_and_a_password_are_used(kubeconfig: Kubeconfig) -> None:
    kubeconfig.write({"token": "abc"})
    assert token_source(connection_info())() == {"Authorization": "Bearer abc"}
    kubeconfig.write({"username": "me", "password": "secret"})
    assert token_source(connection_info())() == {
        "Authorization": aiohttp.encode_basic_auth("me", "secret")
    }


def test_paths_are_relative_to_the_kubeconfig(kubeconfig: Kubeconfig) -> None:
    (kubeconfig.folder / "token").write_text("abc\n", encoding="utf-8")
    kubeconfig.write(
        {"tokenFile": "token", "client-certificate": "/c.crt", "client-key": "../c.key"},
        **{"certificate-authority": "ca.crt"},
    )
    info = connection_info()
    assert info.token == "abc"
    assert info.token_path == kubeconfig.folder / "token"
    assert (info.ca_path, info.certificate_path, info.private_key_path) == (
        str(kubeconfig.folder / "ca.crt"),
        "/c.crt",
        str(kubeconfig.folder / "../c.key"),
    )


def test_of_several_files_the_first_value_wins(
    kubeconfig: Kubeconfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubeconfig.write({"token": "second"})
    first = kubeconfig.folder / "first"
    first.write_text(yaml.safe_dump({"users": [{"name": "u", "user": {"token": "first"}}]}))
    monkeypatch.setenv("KUBECONFIG", f"{first}:{kubeconfig.path}")
    assert connection_info().token == "first"


def test_a_token_file_is_read_again_every_minute(tmp_path: Path) -> None:
    now = 0.0
    path = tmp_path / "token"
    path.write_text("new")
    headers = token_source(
        Connection(server="https://127.0.0.1:1", token="old", token_path=path), lambda: now
    )
    assert headers() == {"Authorization": "Bearer old"}
    now = 61.0
    assert headers() == {"Authorization": "Bearer new"}
    path.unlink()
    now = 130.0
    assert headers() == {"Authorization": "Bearer new"}, "the old one is good for a while yet"


def test_in_a_pod_the_service_accounts_token_is_read_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    info = kopf.ConnectionInfo(server="https://kubernetes.default.svc", token="old")
    monkeypatch.setattr(kopf, "login_with_service_account", lambda settings: info)
    monkeypatch.setattr(credentials, "TOKEN_FILE", tmp_path / "token")
    (tmp_path / "token").write_text("new")
    found = connection_info()
    assert found.server == "https://[fd00::1]:443"
    now = 0.0
    headers = token_source(found, lambda: now)
    now = 61.0
    assert headers() == {"Authorization": "Bearer new"}


async def test_requests_go_through_the_proxy_of_the_kubeconfig() -> None:
    asked: list[str] = []

    async def proxy(request: web.Request) -> web.Response:
        asked.append(request.raw_path)
        return web.json_response({})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", proxy)
    async with TestServer(app) as server:
        info = Connection(server="http://api.invalid", proxy_url=str(server.make_url("")))
        async with ApiClient(info, user_agent="test") as client:
            assert await client.get("/things") == b"{}"
    assert asked == ["http://api.invalid/things"]


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A new certificate for 127.0.0.1 that is its own authority, and its key."""
    files = folder / f"{name}.crt", folder / f"{name}.key"
    how = ["req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-subj", f"/CN={name}"]
    out = ["-out", str(files[0]), "-keyout", str(files[1])]
    subprocess.run(
        ["openssl", *how, *names, *out],
        check=True,
        capture_output=True,
    )
    return files


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make certificates")
async def test_a_rotated_certificate_authority_is_read_again(tmp_path: Path) -> None:
    (old, _), (new, key) = certificate(tmp_path, "old"), certificate(tmp_path, "new")
    authority = tmp_path / "ca.crt"
    shutil.copy(old, authority)

    async def answer(_: web.Request) -> web.Response:
        return web.json_response({})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    identity = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    identity.load_cert_chain(new, key)
    server = TestServer(app, scheme="https")
    await server.start_server(ssl=identity)
    info = Connection(server=f"https://127.0.0.1:{server.port}", ca_path=str(authority))
    async with ApiClient(info, user_agent="test") as client:
        for _ in range(2):
            with pytest.raises(UnknownOutcomeError, match="Certificate"):
                await client.get("/things")
        shutil.copy(new, authority)
        with pytest.raises(UnknownOutcomeError, match="Certificate"):
            await client.get("/things")
        assert await client.get("/things") == b"{}"
    await server.close()
