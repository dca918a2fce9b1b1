"""Where the API server is and how we prove who we are, for our client and for kopf alike."""

import dataclasses
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import kopf
import yaml

logger = logging.getLogger(__name__)

TOKEN_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
TOKEN_REREAD_SECONDS = 60.0


class CredentialsError(Exception):
    """No way to reach a cluster was found; the message says what to set."""


def connection_info() -> kopf.ConnectionInfo:
    """Return the connection of KUBECONFIG, else of the pod's service account.

    Raises:
        CredentialsError: there is neither.
    """
    settings = kopf.OperatorSettings()
    kubeconfig = os.environ.get("KUBECONFIG")
    if kubeconfig:
        try:
            info = kopf.login_with_kubeconfig(settings=settings)
        except (kopf.LoginError, OSError, KeyError, yaml.YAMLError) as error:
            raise CredentialsError(f"KUBECONFIG={kubeconfig} cannot be used: {error}") from error
    else:
        info = kopf.login_with_service_account(settings=settings)
        host = os.environ.get("KUBERNETES_SERVICE_HOST")
        port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        if info is not None and host:
            # By address: the operator must come up while the cluster's DNS is down.
            host = f"[{host}]" if ":" in host else host
            info = dataclasses.replace(info, server=f"https://{host}:{port}")
    if info is None:
        raise CredentialsError(
            "no cluster to talk to: set KUBECONFIG to a kubeconfig file, "
            "or run as a pod with a service account token"
        )
    return info


def token_source(
    info: kopf.ConnectionInfo,
    clock: Callable[[], float] = time.monotonic,
    token_file: Path = TOKEN_FILE,
) -> Callable[[], dict[str, str]]:
    """Return a function that gives the authorization headers of this moment.

    The kubelet rotates service account tokens in place, so the file is read again every
    minute; a token of a kubeconfig is used as it stands there.
    """
    headers = info.as_http_headers()
    rotates = not os.environ.get("KUBECONFIG") and token_file.exists()
    read_at = clock()

    def current() -> dict[str, str]:
        nonlocal headers, read_at
        if rotates and clock() - read_at > TOKEN_REREAD_SECONDS:
            read_at = clock()
            try:
                token = token_file.read_text(encoding="utf-8").strip()
            except OSError as error:
                # The old one is good for a while yet, and in a minute this is tried again.
                logger.warning("service account token: %s", error)
            else:
                headers = {"Authorization": f"Bearer {token}"}
        return headers

    return current
