"""Run integration tests against each version's kube-apiserver; write docs/compatibility.md.

    python -m compat [--versions 1.30,1.37] [PYTEST ARGUMENTS]

A run replaces the results of the versions that it has tested and keeps those of the others.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

from compat.page import Result, page
from localcluster import builds, paths, process
from localcluster.controlplane import APISERVER_VARIABLE

TESTS = "tests/integration"
RUN_SECONDS = 7200
DOCS = paths.REPOSITORY / "docs"
RESULTS = DOCS / "compatibility.json"
PAGE = DOCS / "compatibility.md"


def tested(version: str, arguments: Sequence[str]) -> Result:
    """Run the tests against one version and return what came of them."""
    other = version in builds.OTHER_VERSIONS
    apiserver = builds.apiserver(version) if other else "kube-apiserver"
    with tempfile.TemporaryDirectory(prefix="compat-") as directory:
        report = Path(directory) / "report.xml"
        subprocess.run(
            [sys.executable, "-m", "pytest", f"--junitxml={report}", *(arguments or [TESTS])],
            cwd=paths.REPOSITORY,
            env={**os.environ, APISERVER_VARIABLE: apiserver},
            timeout=RUN_SECONDS,
            check=False,
        )
        cases = list(ElementTree.parse(report).iter("testcase"))  # noqa: S314 - pytest wrote it
    failed = sorted(
        f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    )
    skipped = sum(case.find("skipped") is not None for case in cases)
    return Result(
        version=builds.kubernetes_version(builds.BINARIES[apiserver].family),
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        commit=process.run(["git", "rev-parse", "--short", "HEAD"], timeout=10).strip(),
        tests=" ".join(arguments or [TESTS]),
        passed=len(cases) - len(failed) - skipped,
        failed=failed,
    )


def main() -> int:
    """Test each version and return the exit status: 1 if a test has failed."""
    own = ".".join(builds.kubernetes_version().removeprefix("v").split(".")[:2])
    known = sorted([*builds.OTHER_VERSIONS, own])
    parser = argparse.ArgumentParser(prog="python -m compat", description=__doc__)
    parser.add_argument("--versions", default=",".join(known), help="default: %(default)s")
    options, arguments = parser.parse_known_args()
    wanted = options.versions.split(",")
    if unknown := sorted(set(wanted) - set(known)):
        parser.error(f"--versions: no API server of {', '.join(unknown)}; use {', '.join(known)}")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for version in wanted:
        results[version] = asdict(tested(version, arguments))
        # After each version: a run that is cut short keeps what it has found.
        RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n")
        PAGE.write_text(page([Result(**results[version]) for version in sorted(results)]))
    return int(any(results[version]["failed"] for version in wanted))


if __name__ == "__main__":
    sys.exit(main())
