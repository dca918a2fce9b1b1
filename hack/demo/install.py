"""The operator in the cluster: image, chart, rollout. The end-to-end tests install it so too."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from localcluster import engine as engines
from localcluster import images, paths, process, progress, tools

NAMESPACE = "sandboxpool-system"
RELEASE = "sandboxpool"
CHART = paths.REPOSITORY / "charts" / "sandboxpool"
# Changes when the image's content does, so that an upgrade replaces the pod though the tag is the
# same.
IMAGE_ANNOTATION = "checksum/image"

HELM_SECONDS = 120.0
ROLLOUT_SECONDS = 150
KUBECTL_SECONDS = 60.0


def install_operator(kubeconfig: Path, values: Mapping[str, Any] | None = None) -> None:
    """Build the images, load them, install or upgrade the release, and wait until it is ready.

    Args:
        kubeconfig: The cluster's; all rights are needed.
        values: Further values of the chart.

    Raises:
        StepError: A step failed; the text has the command's last words.
    """
    chart_values = values_for(images.build_operator_image(), values)
    with (
        progress.step("install the chart with Helm") as step,
        tempfile.TemporaryDirectory(prefix="sandboxpool-values-") as folder,
    ):
        state = _release_state(step, kubeconfig)
        if state.startswith("pending"):
            # Helm refuses to touch a release whose installation was interrupted.
            _helm(step, kubeconfig, "uninstall", RELEASE, "--wait")
        file = Path(folder) / "values.yaml"
        file.write_text(yaml.safe_dump(chart_values))
        _helm(
            step,
            kubeconfig,
            *("upgrade", "--install", RELEASE, str(CHART), "--create-namespace"),
            *("--values", str(file), *_ADOPT),
        )
    with progress.step("wait for the operator's rollout") as step:
        await_rollout(kubeconfig, step)


def values_for(image: str, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the values of the chart for an image of the engine."""
    repository, _, tag = image.rpartition(":")
    return {
        "image": {"repository": repository, "tag": tag},
        "probe": {"image": images.PROBE_IMAGE},
        "podAnnotations": {IMAGE_ANNOTATION: _content(image)},
        **(values or {}),
    }


# The cluster may have CRDs that another checkout of the chart, or kubectl, has installed.
_ADOPT = ("--take-ownership", "--force-conflicts")


def await_rollout(kubeconfig: Path, step: progress.Step) -> None:
    """Wait until the Deployment is as the chart says and its pod ready.

    Raises:
        CommandError: It is not in time; the pods and the end of their log are in its output.
    """
    wait = ("rollout", "status", f"deployment/{RELEASE}", f"--timeout={ROLLOUT_SECONDS}s")
    try:
        _kubectl(step, kubeconfig, *wait, timeout=ROLLOUT_SECONDS + KUBECTL_SECONDS)
    except process.CommandError:
        for look in (
            ("get", "pods", "-o", "wide"),
            ("get", "events", "--sort-by=.lastTimestamp"),
            ("logs", f"deployment/{RELEASE}", "--tail=30"),
        ):
            _kubectl(step, kubeconfig, *look, check=False)
        raise


def uninstall_operator(kubeconfig: Path) -> None:
    """Remove the release; CRDs, and with them pools and claims, stay, as the chart has it."""
    with progress.step("uninstall the chart") as step:
        if _release_state(step, kubeconfig):
            _helm(step, kubeconfig, "uninstall", RELEASE, "--wait")


def _content(image: str) -> str:
    engine = engines.current()
    if engine is None:
        raise OSError("no cluster is up: `python -m localcluster up`")
    return engine.docker("image", "inspect", "-f", "{{.Id}}", image).strip()


def _release_state(step: progress.Step, kubeconfig: Path) -> str:
    """Return what Helm says of the release, such as `deployed`; empty when there is none."""
    listed = _helm(step, kubeconfig, "list", "--filter", f"^{RELEASE}$", "--output", "json")
    return next((str(release["status"]) for release in json.loads(listed)), "")


def _helm(step: progress.Step, kubeconfig: Path, *arguments: str) -> str:
    command = [str(tools.path("helm")), "--kubeconfig", str(kubeconfig)]
    return step.run([*command, "--namespace", NAMESPACE, *arguments], timeout=HELM_SECONDS)


def _kubectl(
    step: progress.Step,
    kubeconfig: Path,
    *arguments: str,
    timeout: float = KUBECTL_SECONDS,
    check: bool = True,
) -> None:
    command = [str(tools.path("kubectl")), "--kubeconfig", str(kubeconfig)]
    step.run([*command, "--namespace", NAMESPACE, *arguments], timeout=timeout, check=check)
