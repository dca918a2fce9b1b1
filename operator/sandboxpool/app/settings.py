"""The operator's own settings, from environment variables that begin with SANDBOXPOOL_."""

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    InstanceOf,
    Json,
    ValidationError,
    field_validator,
)
from pydantic_core import ErrorDetails

from sandboxpool.api import names
from sandboxpool.kube.lease import LeaderElectionTimes
from sandboxpool.runtimes.probe import (
    RESOURCES,
    SECURITY_CONTEXT,
    TOLERATIONS,
    ProbeImage,
    ProbeOptions,
    release_labels,
)
from sandboxpool.util.environment import (
    PREFIX,
    Address,
    Flag,
    Listen,
    LogLevel,
    Names,
    Namespaces,
    SettingsError,
    label,
    name,
    number,
    parsed,
)


class ProbeExtras(BaseModel):
    """What else probe pods and their containers have; the fields are those of a pod."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    resources: dict[str, Any] = dict(RESOURCES)
    tolerations: tuple[dict[str, Any], ...] = tuple(map(dict, TOLERATIONS))
    priorityClassName: str = ""
    podSecurityContext: dict[str, Any] = {}
    securityContext: dict[str, Any] = dict(SECURITY_CONTEXT)

    @field_validator("labels", "annotations")
    @classmethod
    def _has_no_key_of_ours(cls, given: dict[str, str]) -> dict[str, str]:
        for key in given:
            if f".{key.partition('/')[0]}".endswith(f".{names.GROUP}"):
                raise ValueError(f"keys of {names.GROUP} are the operator's own; leave out {key!r}")
        return given


class Settings(BaseModel):
    """How the operator runs; the variable of a field is SANDBOXPOOL_ and its name in capitals."""

    model_config = ConfigDict(
        frozen=True, alias_generator=lambda field: PREFIX + field.upper(), validate_by_name=True
    )

    namespace: Annotated[
        str,
        name("name the namespace that the operator runs in, with its Lease and its probe pods"),
    ] = "sandboxpool-system"
    """Namespace that the operator runs in."""

    release: Annotated[str, label("name the release as a Lease may be named")] = (
        names.DEFAULT_RELEASE
    )
    """Name of the Lease, and of the records and probe pods, of all replicas: operators with
    different ones do not meet."""

    watch_namespaces: Namespaces = ()
    """Namespaces whose pools the operator processes, separated by commas; empty for all."""

    manage_runtimes: Flag = True
    """Whether this operator writes SandboxRuntimes and events about nodes: one in a cluster."""

    listen: Listen = Address(None, 8080)
    """Address of the metrics server: host:port, :port or port."""

    health_listen: Listen = Address(None, 8081)
    """Address of the server that answers the kubelet's probes."""

    metrics_auth: Flag = False
    """Whether clients need a token that the API server accepts and allows to get /metrics."""

    log_level: LogLevel = "INFO"
    """Least severity of the messages that are logged."""

    claim_workers: Annotated[int, number(1, 1000)] = 16
    """Claims reconciled at once, without slow ones. A claim mostly waits for the API server: more
    workers would only make each wait longer."""

    pool_workers: Annotated[int, number(1, 1000)] = 8
    """Pools reconciled at once, without slow ones; fewer than claims, so that refill never crowds
    claims out."""

    publish_on_nodes: Flag = False
    """Whether nodes get labels and conditions that show the state of their runtimes."""

    exclusion_labels: Flag = True
    """Whether nodes that sandboxes must avoid get a label; otherwise sandboxes list the hostnames
    of these nodes."""

    probe_image: Annotated[
        str,
        name(
            "name an image with /bin/sh, such as the operator's own (Helm: probe.image): without "
            "probes no isolation is proven and no node comes out of quarantine"
        ),
    ]
    """Image whose /bin/sh runs the probes that prove isolation."""

    probe_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """Pull policy of the probe image."""

    probe_pull_secrets: Names = ()
    """Pull secrets of the probe image, in the operator's namespace; separated by commas."""

    probe: Json[ProbeExtras] = ProbeExtras()
    """What else probe pods have; a JSON object."""

    proof_max_age: Annotated[int, number(600, 366 * 86_400)] = 86_400
    """Seconds after which a proof of isolation expires; the operator renews it before that."""

    admission_policy: Flag = False
    """Whether the chart's admission policy for pods is installed with the operator."""

    lease: Annotated[InstanceOf[LeaderElectionTimes], parsed(LeaderElectionTimes.parse)] = (
        LeaderElectionTimes()
    )
    """Seconds of the leader's lease: duration, renew deadline and retry, such as 15/10/2."""

    def to_probe_image(self) -> ProbeImage:
        """What probes run, and how it is pulled."""
        return ProbeImage(
            self.probe_image,
            self.probe_pull_policy,
            self.probe_pull_secrets,
            self.probe.securityContext,
        )

    def to_probe_options(self) -> ProbeOptions:
        """What else probe pods have."""
        return ProbeOptions(
            labels={**self.probe.labels, **release_labels(self.release)},
            annotations=self.probe.annotations,
            resources=self.probe.resources,
            tolerations=self.probe.tolerations,
            priority_class=self.probe.priorityClassName,
            security_context=self.probe.podSecurityContext,
        )


def load(environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings.

    Raises:
        SettingsError: variables have values that they cannot have.
    """
    variables = {f"{PREFIX}PROBE_IMAGE": "", **environ}
    try:
        found = Settings.model_validate(variables, by_alias=True, by_name=False)
    except ValidationError as error:
        lines = [_line(detail, variables) for detail in error.errors(include_url=False)]
        raise SettingsError("\n".join(lines)) from error
    if not found.manage_runtimes and (found.exclusion_labels or found.publish_on_nodes):
        raise SettingsError(
            f"{PREFIX}MANAGE_RUNTIMES=false: the operator then writes nothing on nodes either; set "
            f"{PREFIX}EXCLUSION_LABELS and {PREFIX}PUBLISH_ON_NODES to false"
        )
    listen, health = found.listen, found.health_listen
    if listen.port == health.port != 0 and (
        listen.host == health.host or None in (listen.host, health.host)
    ):
        raise SettingsError(
            f"{PREFIX}LISTEN and {PREFIX}HEALTH_LISTEN: both say port {listen.port}; use two"
        )
    return found


def _line(detail: ErrorDetails, variables: Mapping[str, str]) -> str:
    variable, *path = map(str, detail["loc"])
    message = detail["msg"].removeprefix("Value error, ")
    if variable != f"{PREFIX}PROBE":
        return f"{variable}={variables[variable]!r:.100}: {message}"
    where, value = ".".join(("probe", *path)), detail["input"]
    return (
        f"{variable} (Helm: {where})={value!r:.100}: {message}; use a JSON object with any of "
        f"{', '.join(ProbeExtras.model_fields)}, each as in a pod"
    )
