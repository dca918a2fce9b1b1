"""Where the API server is, as the official client finds it out."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.config import incluster_config

from sandboxpool.client import config
from sandboxpool.client.errors import ConfigurationError

Object = dict[str, Any]


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No kubeconfig, no service account and no proxy of whoever runs the tests."""
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def kubeconfig(folder: Path, user: Object | None = None, cluster: Object | None = None) -> Path:
    file = folder / "kubeconfig"
    contexts = {"one": {}, "two": {"namespace": "team"}}
    server = {"server": "https://one.test:6443", **(cluster or {})}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "one",
        "clusters": [
            {"name": "one", "cluster": server},
            {"name": "two", "cluster": {"server": "https://[::1]/base/"}},
        ],
        "users": [{"name": "user", "user": user or {"token": "t0ken"}}],
        "contexts": [
            {"name": name, "context": {"cluster": name, "user": "user", **rest}}
            for name, rest in contexts.items()
        ],
    }
    file.write_text(yaml.safe_dump(content))
    return file


def test_the_current_context_or_another(tmp_path: Path) -> None:
    file = kubeconfig(tmp_path)
    one = config.load(kubeconfig=file)
    assert (one.server.host, one.server.port, one.server.https) == ("one.test", 6443, True)
    assert one.namespace == "default"
    assert one.authorization() == "Bearer t0ken"
    assert one.proxy is None
    two = config.load("two", file)
    assert (two.server.host, two.server.port, two.server.path) == ("::1", 443, "/base")
    assert two.namespace == "team"
    assert config.load("two", file, "mine").namespace == "mine"


def test_the_file_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path)))
    assert config.load().server.host == "one.test"


def test_a_proxy_and_what_it_is_not_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = kubeconfig(tmp_path, cluster={"proxy-url": "http://user:p%40ss@proxy.test:3128"})
    proxy = config.load(kubeconfig=file).proxy
    assert proxy is not None
    assert (proxy.host, proxy.port) == ("proxy.test", 3128)
    assert proxy.authorization == "Basic dXNlcjpwQHNz"
    file = kubeconfig(tmp_path, cluster={"proxy-url": "socks5://proxy.test:1080"})
    with pytest.raises(ConfigurationError, match="socks5"):
        config.load(kubeconfig=file)


def test_a_name_in_the_certificate_and_no_verification(tmp_path: Path) -> None:
    named = config.load(kubeconfig=kubeconfig(tmp_path, cluster={"tls-server-name": "other.test"}))
    assert named.hostname == "other.test"
    assert named.ssl_context().check_hostname
    open_ = config.load(kubeconfig=kubeconfig(tmp_path, cluster={"insecure-skip-tls-verify": True}))
    assert open_.hostname == "one.test"
    assert not open_.ssl_context().check_hostname
    assert open_.ssl_context() is open_.ssl_context()


def test_an_exec_plugin_is_asked_again_when_its_token_expires(tmp_path: Path) -> None:
    plugin = tmp_path / "plugin"
    counter = tmp_path / "count"
    plugin.write_text(
        f"#!{sys.executable}\n"
        "import json, pathlib\n"
        f"count = pathlib.Path({str(counter)!r})\n"
        "n = int(count.read_text()) + 1 if count.exists() else 1\n"
        "count.write_text(str(n))\n"
        "expires = '2020-01-01T00:00:00Z' if n == 1 else '2099-01-01T00:00:00Z'\n"
        "status = {'token': f'token-{n}', 'expirationTimestamp': expires}\n"
        "print(json.dumps({'apiVersion': 'client.authentication.k8s.io/v1',"
        " 'kind': 'ExecCredential', 'status': status}))\n"
    )
    plugin.chmod(plugin.stat().st_mode | stat.S_IXUSR)
    user = {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": str(plugin),
            "interactiveMode": "Never",
        }
    }
    settings = config.load(kubeconfig=kubeconfig(tmp_path, user))
    assert settings.may_block
    first, second, third = (settings.authorization() for _ in range(3))
    assert first.endswith("token-2")
    assert (second, third) == (first, first)
    assert json.loads(counter.read_text()) == 2


def test_in_a_pod_the_service_account_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("from-a-file")
    (tmp_path / "ca.crt").write_text("certificate")
    (tmp_path / "namespace").write_text("team\n")
    monkeypatch.setattr(config, "_SERVICE_ACCOUNT", tmp_path)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    settings = config.load()
    assert (settings.server.host, settings.server.port) == ("10.0.0.1", 443)
    assert settings.namespace == "team"
    assert settings.authorization().lower() == "bearer from-a-file"
    with pytest.raises(ConfigurationError, match="certificates"):
        settings.ssl_context()


@pytest.mark.parametrize(
    ("content", "text"),
    [(None, "cannot"), ("", "empty"), ("{}", "cannot use"), (": : :", "cannot read")],
)
def test_a_file_that_is_of_no_use_is_named(tmp_path: Path, content: str | None, text: str) -> None:
    file = tmp_path / "kubeconfig"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigurationError, match=text) as raised:
        config.load(kubeconfig=file)
    assert str(file) in raised.value.message


def test_nothing_to_go_by() -> None:
    with pytest.raises(ConfigurationError, match="no kubeconfig"):
        config.load()
