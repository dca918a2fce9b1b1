"""Where the API server is and how to prove who one is, as the official client finds it out.

Kubeconfig files, contexts, exec plugins, proxies and service accounts are the official client's
business; what it found is read from its `Configuration`.
"""

import base64
import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from sandboxpool.client.errors import ConfigurationError

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_DEFAULT_NAMESPACE = "default"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address to connect to; with TLS where `https` is true."""

    host: str
    port: int
    https: bool
    path: str = ""
    authorization: str = ""


def parse_url(url: str, what: str) -> Endpoint:
    """Take a URL apart.

    Raises:
        ConfigurationError: It is none with http or https.
    """
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port
    except ValueError as error:
        raise ConfigurationError(f"{what} {url!r} is no URL: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(f"{what} {url!r}: only http and https URLs are supported")
    authorization = ""
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = "Basic " + base64.b64encode(pair.encode()).decode()
    https = parts.scheme == "https"
    return Endpoint(
        parts.hostname, port or (443 if https else 80), https, parts.path.rstrip("/"), authorization
    )


class Settings:
    """A cluster to talk to.

    Attributes:
        server: The API server.
        proxy: The HTTP proxy in front of it, if there is one.
        proxy_headers: What the proxy wants to be told.
        namespace: Where claims are made if nothing else is said.
    """

    def __init__(self, configuration: Any, namespace: str = _DEFAULT_NAMESPACE) -> None:
        """Take over the `Configuration` of the official client."""
        self.server = parse_url(configuration.host, "the API server's address")
        self.namespace = namespace
        self.proxy: Endpoint | None = None
        self.proxy_headers: Sequence[tuple[str, str]] = ()
        if configuration.proxy and not _bypasses(configuration):
            self.proxy = parse_url(configuration.proxy, "the proxy's address")
            self.proxy_headers = tuple((configuration.proxy_headers or {}).items())
        self._configuration = configuration
        self._context: ssl.SSLContext | None = None
        self._context_of: object = None

    @property
    def may_block(self) -> bool:
        """Asking for the credentials may run a program or read a file."""
        return self._configuration.refresh_api_key_hook is not None

    def authorization(self) -> str:
        """Return the Authorization header as of now; empty where a certificate is all."""
        configuration = self._configuration
        token = configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        if token:
            # The official loaders write "bearer", or "Bearer", in front of it.
            return str(token).strip()
        if configuration.username or configuration.password:
            return str(configuration.get_basic_auth_token())
        return ""

    @property
    def hostname(self) -> str:
        """The name that the API server's certificate must have."""
        return str(self._configuration.tls_server_name or self.server.host)

    def ssl_context(self) -> ssl.SSLContext:
        """Return what TLS connections to the API server are made with.

        Made anew when an exec plugin or somebody else has changed the files.

        Raises:
            ConfigurationError: A file is missing or no certificate.
        """
        configuration = self._configuration
        files = (configuration.ssl_ca_cert, configuration.cert_file, configuration.key_file)
        of = (configuration.verify_ssl, *((name, _changed_at(name)) for name in files))
        if self._context is None or of != self._context_of:
            try:
                self._context = _ssl_context(configuration)
            except (OSError, ValueError) as error:
                raise ConfigurationError(
                    f"cannot use the certificates {', '.join(filter(None, files))}: {error}"
                ) from error
            self._context_of = of
        return self._context


def _ssl_context(configuration: Any) -> ssl.SSLContext:
    ca_data = getattr(configuration, "ca_cert_data", None)
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert or None, cadata=ca_data)
    if getattr(configuration, "disable_strict_ssl_verification", False):
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if configuration.assert_hostname is False or not configuration.verify_ssl:
        context.check_hostname = False
    if not configuration.verify_ssl:
        context.verify_mode = ssl.CERT_NONE
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file)
    context.set_alpn_protocols(["http/1.1"])
    return context


def _changed_at(file: str | None) -> float:
    try:
        return os.stat(file).st_mtime if file else 0.0
    except OSError:
        return 0.0


def _bypasses(configuration: Any) -> bool:
    from kubernetes.client.rest import should_bypass_proxies

    return bool(should_bypass_proxies(configuration.host, configuration.no_proxy or ""))


def load(
    context: str | None = None,
    kubeconfig: str | os.PathLike[str] | None = None,
    namespace: str | None = None,
) -> Settings:
    """Find the cluster as kubectl does.

    A kubeconfig that is named, the one of `$KUBECONFIG` or `~/.kube/config`, else the service
    account of the pod that this runs in.

    Args:
        context: The context of the kubeconfig; its current one if unset.
        kubeconfig: The file.
        namespace: Instead of that of the context, or of the pod.

    Raises:
        ConfigurationError: Nothing of it is there, or it is unusable.
    """
    # Here, because it takes its time: whoever only wants the classes need not wait.
    import yaml
    from kubernetes import config as official
    from kubernetes.client import Configuration

    configuration = type.__call__(Configuration)
    file = os.fspath(kubeconfig) if kubeconfig is not None else os.environ.get("KUBECONFIG", "")
    in_pod = "KUBERNETES_SERVICE_HOST" in os.environ and (_SERVICE_ACCOUNT / "token").exists()
    default = Path("~/.kube/config").expanduser()
    if not file and default.exists():
        file = str(default)
    try:
        if not file and in_pod and context is None:
            _official(official.load_incluster_config)(client_configuration=configuration)
            return Settings(configuration, namespace or _service_account_namespace())
        if not file:
            raise ConfigurationError(
                "no cluster to talk to: there is no kubeconfig ($KUBECONFIG, ~/.kube/config) and"
                " no service account; name a file with kubeconfig="
            )
        _official(official.load_kube_config)(file, context, client_configuration=configuration)
        found = namespace or _context_namespace(official, file, context)
        return Settings(configuration, found)
    except official.ConfigException as error:
        raise ConfigurationError(f"cannot use {file or 'the service account'}: {error}") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"cannot read {file or 'the service account'}: {error}") from error


def _official(loader: Any) -> Any:
    """Return a loader as what may be called: the official client has no types here."""
    return loader


def _service_account_namespace() -> str:
    try:
        return (_SERVICE_ACCOUNT / "namespace").read_text().strip() or _DEFAULT_NAMESPACE
    except OSError:
        return _DEFAULT_NAMESPACE


def _context_namespace(official: Any, file: str, context: str | None) -> str:
    contexts, current = official.list_kube_config_contexts(file)
    for candidate in [*contexts, current]:
        if candidate["name"] == (context or current["name"]):
            return str(candidate["context"].get("namespace") or _DEFAULT_NAMESPACE)
    return _DEFAULT_NAMESPACE
