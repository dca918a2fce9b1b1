"""The bridge's settings, from environment variables that begin with SANDBOXPOOL_."""

import os
from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, InstanceOf, ValidationError

from sandboxpool.api.names import DEFAULT_RELEASE
from sandboxpool.kube.lease import LeaderElectionTimes
from sandboxpool.util.environment import (
    PREFIX,
    Address,
    Flag,
    Listen,
    LogLevel,
    Names,
    SettingsError,
    label,
    name,
    number,
    parsed,
)


class Settings(BaseModel):
    """How the bridge runs; the variable of a field is SANDBOXPOOL_ and its name in capitals."""

    model_config = ConfigDict(
        frozen=True, alias_generator=lambda field: PREFIX + field.upper(), validate_by_name=True
    )

    namespace: Annotated[str, name("name the namespace that the bridge runs in, with its Lease")]
    """Namespace that the bridge runs in."""

    release: Annotated[str, label("name the release as a Lease may be named")] = DEFAULT_RELEASE
    """Name of the release, from which that of the Lease of all replicas is made."""

    opensandbox_namespaces: Names
    """Namespaces whose BatchSandboxes are served; separated by commas."""

    opensandbox_exclusive: Flag = False
    """Whether BatchSandboxes that name no pool fail at once, as nothing else serves them."""

    opensandbox_workers: Annotated[int, number(1, 1000)] = 64
    """BatchSandboxes reconciled at once, without slow ones. One mostly waits for its sandbox to
    start the task."""

    listen: Listen = Address(None, 8080)
    """Address of the metrics server: host:port, :port or port."""

    health_listen: Listen = Address(None, 8081)
    """Address of the server that answers the kubelet's probes."""

    log_level: LogLevel = "INFO"
    """Least severity of the messages that are logged."""

    lease: Annotated[InstanceOf[LeaderElectionTimes], parsed(LeaderElectionTimes.parse)] = (
        LeaderElectionTimes()
    )
    """Seconds of the leader's lease: duration, renew deadline and retry, such as 15/10/2."""


def load(environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings.

    Raises:
        SettingsError: variables have values that they cannot have.
    """
    variables = {f"{PREFIX}NAMESPACE": "", f"{PREFIX}OPENSANDBOX_NAMESPACES": "", **environ}
    try:
        found = Settings.model_validate(variables, by_alias=True, by_name=False)
    except ValidationError as error:
        lines = []
        for detail in error.errors(include_url=False):
            variable = str(detail["loc"][0])
            message = detail["msg"].removeprefix("Value error, ")
            lines.append(f"{variable}={variables[variable]!r:.100}: {message}")
        raise SettingsError("\n".join(lines)) from error
    if not found.opensandbox_namespaces:
        raise SettingsError(
            f"{PREFIX}OPENSANDBOX_NAMESPACES='' (Helm: opensandbox.namespaces): name the namespaces"
            " whose BatchSandboxes are served"
        )
    return found
