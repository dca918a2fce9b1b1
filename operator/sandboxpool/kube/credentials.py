"""Finds the API server and the credentials, for our client and for kopf."""

import dataclasses
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kopf
import yaml

logger = logging.getLogger(__name__)

TOKEN_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
TOKEN_REREAD_SECONDS = 60.0


class CredentialsError(Exception):
    """No usable credentials were found; the message says what to set."""


@dataclasses.dataclass(frozen=True)
class Connection(kopf.ConnectionInfo):
    """kopf's connection information, and the file that the token is read from, if any."""

    token_path: Path | None = None


def connection_info() -> Connection:
    """Return the connection from KUBECONFIG, else from the pod's service account.

    Raises:
        CredentialsError: neither exists, or the kubeconfig has unsupported fields.
    """
    kubeconfig = os.environ.get("KUBECONFIG")
    if kubeconfig:
        try:
            return _of_kubeconfig(kubeconfig)
        except (kopf.LoginError, OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
            raise CredentialsError(f"KUBECONFIG={kubeconfig} cannot be used: {error}") from error
    info = kopf.login_with_service_account(settings=kopf.OperatorSettings())
    if info is None:
        raise CredentialsError(
            "no cluster to talk to: set KUBECONFIG to a kubeconfig file, "
            "or run as a pod with a service account token"
        )
    host = os.environ.get("KUBERNETES_SERVICE_HOST")
    port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if host:
        # By address, so that the operator starts while the cluster's DNS is down.
        host = f"[{host}]" if ":" in host else host
        info = dataclasses.replace(info, server=f"https://{host}:{port}")
    return _connection(info, TOKEN_FILE)


def _connection(info: kopf.ConnectionInfo, token_path: Path | None, **changes: Any) -> Connection:
    known = {field.name: getattr(info, field.name) for field in dataclasses.fields(info)}
    return Connection(**(known | changes), token_path=token_path)


# --- Kubeconfigs ---------------------------------------------------------------------------------


# Fields of a kubeconfig that neither kopf nor our client supports. Ignoring them would use another
# identity, or none.
_UNSUPPORTED_OF_USER = {
    "exec": "credential plugins are not run",
    "auth-provider": "auth providers are not supported, and no longer by kubectl either",
    "as": "impersonation is not supported",
    "as-uid": "impersonation is not supported",
    "as-groups": "impersonation is not supported",
    "as-user-extra": "impersonation is not supported",
}
_OTHER_USER = (
    "use a user with a token, a tokenFile or a client certificate, such as the token of a "
    "service account by `kubectl create token`"
)


def _of_kubeconfig(kubeconfig: str) -> Connection:
    cluster, user = _current(kubeconfig)
    for name, why in _UNSUPPORTED_OF_USER.items():
        if user.get(name):
            raise CredentialsError(
                f"KUBECONFIG={kubeconfig}: the current user has {name!r}: {why}; {_OTHER_USER}"
            )
    if bool(user.get("username")) != bool(user.get("password")):
        raise CredentialsError(
            f"KUBECONFIG={kubeconfig}: the current user has one of username and password without "
            f"the other; {_OTHER_USER}"
        )
    if cluster.get("tls-server-name"):
        raise CredentialsError(
            f"KUBECONFIG={kubeconfig}: the current cluster has 'tls-server-name', which is not "
            "supported; use a server whose certificate is valid for the name in its URL"
        )
    proxy = cluster.get("proxy-url")
    if proxy and not proxy.startswith(("http://", "https://")):
        raise CredentialsError(
            f"KUBECONFIG={kubeconfig}: the current cluster has the proxy-url {proxy!r}; use a "
            "proxy with http or https"
        )
    info = kopf.login_with_kubeconfig(settings=kopf.OperatorSettings())
    assert info is not None, "KUBECONFIG is set"
    if not info.server:
        raise CredentialsError(f"KUBECONFIG={kubeconfig}: the current cluster has no 'server'")
    paths = {
        "ca_path": cluster.get("certificate-authority"),
        "certificate_path": user.get("client-certificate"),
        "private_key_path": user.get("client-key"),
    }
    token_file = user.get("tokenFile")
    if not token_file:
        return _connection(info, None, **paths)
    token_path = Path(token_file)
    token = token_path.read_text(encoding="utf-8").strip()
    return _connection(info, token_path, **paths, token=token)


def _current(kubeconfig: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The cluster and the user of the current context; of several files the first value wins.

    Paths are relative to the file that contains them.
    """
    context_name = ""
    found: dict[str, dict[str, dict[str, Any]]] = {"contexts": {}, "clusters": {}, "users": {}}
    for text in filter(None, map(str.strip, kubeconfig.split(os.pathsep))):
        path = Path(text).expanduser()
        config = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        context_name = context_name or config.get("current-context") or ""
        for kind, known in found.items():
            for item in config.get(kind) or ():
                values = dict(item.get(kind[:-1]) or {})
                for name in _PATHS:
                    if values.get(name):
                        values[name] = str(path.parent / Path(values[name]).expanduser())
                known.setdefault(item["name"], values)
    if not context_name:
        raise kopf.LoginError("no 'current-context' is set")
    try:
        context = found["contexts"][context_name]
        return found["clusters"][context["cluster"]], found["users"][context["user"]]
    except KeyError as error:
        raise kopf.LoginError(
            f"the context {context_name!r}, or its cluster or user, is missing: {error}"
        ) from error


_PATHS = ("certificate-authority", "client-certificate", "client-key", "tokenFile")


# --- Tokens --------------------------------------------------------------------------------------


def token_source(
    info: kopf.ConnectionInfo, clock: Callable[[], float] = time.monotonic
) -> Callable[[], dict[str, str]]:
    """Return a function that returns the current authorization headers.

    A token file is read again every minute, because the kubelet and others rotate tokens in place.
    A token in a kubeconfig itself does not change.
    """
    headers = info.as_http_headers()
    token_path = info.token_path if isinstance(info, Connection) else None
    read_at = clock()

    def current() -> dict[str, str]:
        nonlocal headers, read_at
        if token_path is not None and clock() - read_at > TOKEN_REREAD_SECONDS:
            read_at = clock()
            try:
                token = token_path.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeError) as error:
                # The former token stays valid for a while.
                logger.warning(
                    "token file %s cannot be read, the former token is used: %s", token_path, error
                )
            else:
                headers = {"Authorization": f"Bearer {token}"}
        return headers

    return current
