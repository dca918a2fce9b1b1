"""A runtime breaks on a node, from the installation to the removal, by the commands of the docs.

Whoever runs the cluster is told by an alert, the dashboards, the page, and `kubectl sandboxpool`.
"""

import re
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from demo import install
from localcluster import images
from localcluster.nodeimage import SAMPLE_IMAGE
from localcluster.paths import REPOSITORY
from support import Api, eventually, pages, rules
from support.deployed import DeployedOperator
from support.grafana import Dashboard
from support.prometheus import Prometheus, running
from support.realnodes import GVISOR, WITH_GVISOR
from support.releases import SHARED_VALUES, Release
from support.screen import Screen
from support.survivors import Survivor

ALERT = "SandboxPoolRuntimeBroken"
HANDLER = "runsc"
PATH_SECONDS = 600
# Probes are repeated with a growing delay.
MENDED_SECONDS = 150.0


@pytest.fixture
def release(kubeconfig: Path, deployed: DeployedOperator, tmp_path: Path) -> Iterator[Release]:
    """The release, which the test may do anything to."""
    deployed.keep(deployed.log())
    yield Release(kubeconfig, tmp_path)
    install.install_operator(kubeconfig, SHARED_VALUES)
    deployed.wait_ready()


@pytest.mark.usefixtures("shims_restored", "terminal", "nodes_not_new")
@pytest.mark.timeout(PATH_SECONDS, func_only=True)
def test_a_broken_runtime_is_told_everywhere_and_no_claimed_sandbox_is_lost(
    release: Release, admin: Api, namespace: str, deployed: DeployedOperator
) -> None:
    team = f"{namespace}-team"
    here = {"team-a": team, "gvisor": GVISOR, "busybox:1.37": SAMPLE_IMAGE}

    followed = ""

    def follow(heading: str) -> str:
        nonlocal followed
        commands = pages.section("tutorial.md", heading)
        followed += commands
        return pages.run_shell(_in_this_cluster(commands, here))

    # Of a node that has failed within the hour, the next probe may be long in coming.
    deployed.forget()
    release.uninstall()
    release.install(install.CHART, install.values_for(images.build_operator_image(), SHARED_VALUES))
    deployed.wait_ready()
    assert "Phase:          Succeeded" in release.test()
    try:
        follow("Create a pool")
        follow("Take a sandbox")
        survivor = Survivor.of(admin.within(team), "mine")
        with running(admin, _impatient_rules()) as prometheus, _page() as url:
            fleet = _fleet(admin, prometheus)
            assert not prometheus.alerts(ALERT, handler=HANDLER)
            eventually(lambda: HANDLER in _read(url), message="the page is complete")
            assert not _names_cause(_read(url))

            follow("Break the runtime on a node")

            (alert,) = eventually(
                lambda: prometheus.alerts(ALERT, handler=HANDLER),
                message="the alert fires",
                timeout=60,
            )
            runbook = alert["annotations"]["runbook_url"].removeprefix("docs/")
            said = "".join(map(pages.run_shell, rules.shell_blocks(pages.text(runbook))))
            assert _names_cause(said)
            assert fleet.by("Quarantined nodes by handler", "handler")[HANDLER] == 1
            eventually(
                lambda: _read(url), until=_names_cause, message="the page names node and cause"
            )
            assert _names_cause(follow("Find out what is wrong"))
            survivor.check()

            follow("Mend it")

            eventually(
                lambda: not prometheus.alerts(ALERT, handler=HANDLER),
                message="the alert resolves",
                timeout=MENDED_SECONDS,
            )
            assert fleet.by("Quarantined nodes by handler", "handler").get(HANDLER, 0) == 0
            eventually(
                lambda: _read(url),
                until=lambda html: not _names_cause(html),
                message="the page says no more of it",
            )
        for command in ("helm upgrade", "helm uninstall"):
            pages.run_shell(pages.command("upgrading.md", command), REPOSITORY)
            survivor.check()
        follow("Clean up")
        shell = (code for language, code in pages.blocks("tutorial.md") if language == "sh")
        assert followed == "".join(shell)
    finally:
        admin.delete("Namespace", team)


@contextmanager
def _page() -> Iterator[str]:
    """The URL of the page that `kubectl sandboxpool dashboard` serves."""
    command = ["kubectl", "sandboxpool", "dashboard"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().removeprefix("Dashboard: ").strip()
        finally:
            process.terminate()


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def _names_cause(text: str) -> bool:
    return re.search(rf"ShimMissing on \W*{WITH_GVISOR}\b", text) is not None


def _impatient_rules() -> dict[str, str]:
    """The chart's rules, with alerts that fire after seconds."""
    return {
        file.name: re.sub(r"for: \d+m\b", "for: 3s", file.read_text())
        for file in (rules.RECORDING, rules.ALERTS)
    }


def _fleet(api: Api, prometheus: Prometheus) -> Screen:
    """The fleet's dashboard as the chart has installed it."""
    found = api.list("ConfigMap", install.NAMESPACE, labelSelector="grafana_dashboard=1")
    boards = [Dashboard.parse(text) for each in found for text in each["data"].values()]
    (fleet,) = (board for board in boards if board.model["title"].endswith("Fleet"))
    return Screen(fleet, prometheus, {"runtime_class": ".*"})


def _in_this_cluster(text: str, here: dict[str, str]) -> str:
    for there, name in here.items():
        text = text.replace(there, name)
    return text
