"""The chart's rule files, as Prometheus and promtool read them."""

import re
import textwrap
from pathlib import Path
from typing import Any

import yaml

from localcluster.paths import REPOSITORY

Rule = dict[str, Any]

FILES = REPOSITORY / "charts" / "sandboxpool" / "files"
ALERTS = FILES / "alerts.yaml"
RECORDING = FILES / "recording.yaml"
RECORDING_POOLS = FILES / "recording-pools.yaml"
ALERTS_OPENSANDBOX = FILES / "alerts-opensandbox.yaml"
ALL = (RECORDING, RECORDING_POOLS, ALERTS, ALERTS_OPENSANDBOX)
RUNBOOKS = REPOSITORY / "docs" / "runbooks"
# The labels `job` in the files, which the chart replaces by those of the release.
JOB = "sandboxpool-metrics"
JOB_OPENSANDBOX = "sandboxpool-opensandbox-metrics"


def rules(file: Path) -> list[Rule]:
    """The rules of a file, in order."""
    groups = yaml.safe_load(file.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def groups() -> list[str]:
    """Names of all groups of rules, those first that record what others read."""
    return [
        str(group["name"]) for file in ALL for group in yaml.safe_load(file.read_text())["groups"]
    ]


def alerts() -> dict[str, Rule]:
    """The alerts by their names."""
    return {rule["alert"]: rule for file in (ALERTS, ALERTS_OPENSANDBOX) for rule in rules(file)}


def shell_blocks(page: str) -> list[str]:
    """The code of a page's shell blocks, also of those in lists."""
    found = re.findall(r"^( *)```sh\n(.*?)^ *```$", page, re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(code) for _, code in found]
