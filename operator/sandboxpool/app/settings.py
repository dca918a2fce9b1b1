"""The operator's own settings, from environment variables that begin with SANDBOXPOOL_."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from sandboxpool.api import names
from sandboxpool.kube.lease import LeaderElectionTimes
from sandboxpool.runtimes.probe import (
    RESOURCES,
    SECURITY_CONTEXT,
    TOLERATIONS,
    ProbeImage,
    ProbeOptions,
)


class SettingsError(Exception):
    """A setting is wrong; the message names the variable and what it may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the operator runs."""

    namespace: str = "sandboxpool-system"
    """Where the operator itself lives (SANDBOXPOOL_NAMESPACE)."""

    host: str | None = None
    """Address that metrics are served on; None: all, of all families (SANDBOXPOOL_LISTEN,
    host:port)."""

    port: int = 8080
    """Port that metrics are served on (SANDBOXPOOL_LISTEN, host:port)."""

    health_host: str | None = None
    """Address that probes are served on; None: all, of all families (SANDBOXPOOL_HEALTH_LISTEN,
    host:port)."""

    health_port: int = 8081
    """Port that probes are served on (SANDBOXPOOL_HEALTH_LISTEN, host:port)."""

    metrics_auth: bool = False
    """Whether metrics are for those only whom the API server knows and lets get /metrics
    (SANDBOXPOOL_METRICS_AUTH, true or false)."""

    log_level: str = "INFO"
    """DEBUG, INFO, WARNING or ERROR (SANDBOXPOOL_LOG_LEVEL)."""

    claim_workers: int = 16
    """Claims worked on at once, those that are slow not counted; each waits for the API server most
    of its time, and more of them would only wait for longer, and others behind them
    (SANDBOXPOOL_CLAIM_WORKERS)."""

    pool_workers: int = 8
    """Pools worked on at once, those that are slow not counted; fewer than claims, so that refill
    never crowds them out (SANDBOXPOOL_POOL_WORKERS)."""

    publish_on_nodes: bool = False
    """Whether nodes get labels and conditions that say what is known of their runtimes
    (SANDBOXPOOL_PUBLISH_ON_NODES, true or false)."""

    exclusion_labels: bool = True
    """Whether nodes that sandboxes must keep away from are labelled so; else sandboxes name their
    hostnames (SANDBOXPOOL_EXCLUSION_LABELS, true or false)."""

    probe_image: ProbeImage = field(default_factory=ProbeImage)
    """Image whose /bin/sh proves isolation (SANDBOXPOOL_PROBE_IMAGE), how it is pulled
    (SANDBOXPOOL_PROBE_PULL_POLICY: Always, IfNotPresent or Never; SANDBOXPOOL_PROBE_PULL_SECRETS:
    names of secrets of our own namespace, separated by commas), and the security context of the
    containers that run it (`securityContext` in SANDBOXPOOL_PROBE)."""

    probe_options: ProbeOptions = field(default_factory=ProbeOptions)
    """What else probe pods have (SANDBOXPOOL_PROBE: a JSON object with any of labels, annotations,
    resources, tolerations, priorityClassName and podSecurityContext, each as in a pod)."""

    proof_max_age: int = 86_400
    """Seconds after which a proof of isolation is none any more; it is asked for again before
    (SANDBOXPOOL_PROOF_MAX_AGE)."""

    admission_policy: bool = False
    """Whether the chart's admission policy for pods was installed with the operator
    (SANDBOXPOOL_ADMISSION_POLICY, true or false)."""

    lease: LeaderElectionTimes = field(default_factory=LeaderElectionTimes)
    """How long the lease of the leader lasts, in seconds (SANDBOXPOOL_LEASE: duration, renew
    deadline and retry, such as 15/10/2)."""


def load(environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings.

    Raises:
        SettingsError: a variable has a value that it cannot have.
    """
    default = Settings()
    host, port = _address("SANDBOXPOOL_LISTEN", environ, default.port)
    health_host, health_port = _address("SANDBOXPOOL_HEALTH_LISTEN", environ, default.health_port)
    if port == health_port != 0 and (host == health_host or None in (host, health_host)):
        raise SettingsError(
            f"SANDBOXPOOL_LISTEN and SANDBOXPOOL_HEALTH_LISTEN: both say port {port}; use two"
        )
    level = environ.get("SANDBOXPOOL_LOG_LEVEL", default.log_level).upper()
    if level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise SettingsError(f"SANDBOXPOOL_LOG_LEVEL={level}: use DEBUG, INFO, WARNING or ERROR")
    namespace = environ.get("SANDBOXPOOL_NAMESPACE", default.namespace).strip()
    if not namespace:
        raise SettingsError(
            "SANDBOXPOOL_NAMESPACE is empty: name the namespace that the operator lives in, in "
            "which its Lease and its probe pods are"
        )
    image, options = _probe(environ)
    lease = environ.get("SANDBOXPOOL_LEASE")
    return Settings(
        namespace=namespace,
        host=host,
        port=port,
        health_host=health_host,
        health_port=health_port,
        metrics_auth=_flag("SANDBOXPOOL_METRICS_AUTH", environ),
        log_level=level,
        claim_workers=_number(
            "SANDBOXPOOL_CLAIM_WORKERS",
            environ.get("SANDBOXPOOL_CLAIM_WORKERS", str(default.claim_workers)),
            1,
            1000,
        ),
        pool_workers=_number(
            "SANDBOXPOOL_POOL_WORKERS",
            environ.get("SANDBOXPOOL_POOL_WORKERS", str(default.pool_workers)),
            1,
            1000,
        ),
        publish_on_nodes=_flag("SANDBOXPOOL_PUBLISH_ON_NODES", environ),
        exclusion_labels=_flag("SANDBOXPOOL_EXCLUSION_LABELS", environ, default="true"),
        probe_image=image,
        probe_options=options,
        proof_max_age=_number(
            "SANDBOXPOOL_PROOF_MAX_AGE",
            environ.get("SANDBOXPOOL_PROOF_MAX_AGE", str(default.proof_max_age)),
            600,
            366 * 86_400,
        ),
        admission_policy=_flag("SANDBOXPOOL_ADMISSION_POLICY", environ),
        lease=_lease(lease) if lease is not None else default.lease,
    )


class _Probe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """SANDBOXPOOL_PROBE as it is written; its names are those of a pod."""

    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    resources: dict[str, Any] = msgspec.field(default_factory=lambda: dict(RESOURCES))
    tolerations: list[dict[str, Any]] = msgspec.field(
        default_factory=lambda: [dict(toleration) for toleration in TOLERATIONS]
    )
    priorityClassName: str = ""
    podSecurityContext: dict[str, Any] = {}
    securityContext: dict[str, Any] = msgspec.field(default_factory=lambda: dict(SECURITY_CONTEXT))


def _probe(environ: Mapping[str, str]) -> tuple[ProbeImage, ProbeOptions]:
    name = environ.get("SANDBOXPOOL_PROBE_IMAGE", "").strip()
    if not name:
        raise SettingsError(
            "SANDBOXPOOL_PROBE_IMAGE is empty: without probes no isolation is proven and no node "
            "comes out of quarantine; name an image with /bin/sh, such as the operator's own "
            "(Helm: probe.image)"
        )
    pull_policy = environ.get("SANDBOXPOOL_PROBE_PULL_POLICY", ProbeImage().pull_policy)
    if pull_policy not in ("Always", "IfNotPresent", "Never"):
        raise SettingsError(
            f"SANDBOXPOOL_PROBE_PULL_POLICY={pull_policy}: use Always, IfNotPresent or Never"
        )
    secrets = environ.get("SANDBOXPOOL_PROBE_PULL_SECRETS", "").split(",")
    try:
        given = msgspec.json.decode(environ.get("SANDBOXPOOL_PROBE", "{}"), type=_Probe)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise SettingsError(
            f"SANDBOXPOOL_PROBE (Helm: probe): {error}; use a JSON object with any of "
            f"{', '.join(_Probe.__struct_fields__)}, each as in a pod"
        ) from error
    for field_name, mapping in (("labels", given.labels), ("annotations", given.annotations)):
        for key in mapping:
            prefix = key.partition("/")[0]
            if prefix == names.GROUP or prefix.endswith(f".{names.GROUP}"):
                raise SettingsError(
                    f"SANDBOXPOOL_PROBE (Helm: probe.{field_name}): {field_name} has {key!r}, and "
                    f"keys of {names.GROUP} are the operator's own; leave it out"
                )
    image = ProbeImage(
        name,
        pull_policy,
        tuple(secret.strip() for secret in secrets if secret.strip()),
        given.securityContext,
    )
    options = ProbeOptions(
        labels=given.labels,
        annotations=given.annotations,
        resources=given.resources,
        tolerations=tuple(given.tolerations),
        priority_class=given.priorityClassName,
        security_context=given.podSecurityContext,
    )
    return image, options


def _lease(text: str) -> LeaderElectionTimes:
    parts = text.split("/")
    if len(parts) == 3 and all(part.isdecimal() for part in parts):
        duration, deadline, retry = map(int, parts)
        if duration > deadline > retry > 0:
            return LeaderElectionTimes(duration, deadline, retry)
    raise SettingsError(
        f"SANDBOXPOOL_LEASE={text}: use three whole numbers of seconds such as 15/10/2, the "
        "lease's duration, the renew deadline and the pause between tries, each less than the "
        "one before"
    )


def _address(variable: str, environ: Mapping[str, str], port: int) -> tuple[str | None, int]:
    """Read host:port, :port or a port; no host means all addresses of all families."""
    host, _, number = environ.get(variable, f":{port}").rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise SettingsError(
            f"{variable}: an IPv6 address stands in brackets, such as [::1]:{number}"
        )
    return host or None, _number(variable, number, 0, 65535)


def _flag(variable: str, environ: Mapping[str, str], default: str = "false") -> bool:
    text = environ.get(variable, default).lower()
    if text not in ("true", "false"):
        raise SettingsError(f"{variable}={text}: use true or false")
    return text == "true"


def _number(variable: str, text: str, least: int, most: int) -> int:
    if not text.isdecimal() or not least <= int(text) <= most:
        raise SettingsError(f"{variable}: {text!r} is no number from {least} to {most}")
    return int(text)
