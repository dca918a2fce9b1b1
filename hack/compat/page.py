"""The page of results. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field

_HEAD = """\
# Versions of Kubernetes

`make compat` runs the integration tests (a real kube-apiserver and etcd; nodes and kubelets are
fake) against the API server of each version, and writes this page. Kubelets of other versions are
not part of it: the end-to-end tests use the local cluster's version only.

| Version | Passed | Failed | Tests | Date | Commit |
|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Result:
    """What came of the tests against one API server.

    Attributes:
        version: Such as v1.36.3.
        date: Day of the run, ISO 8601.
        commit: What was tested.
        tests: The tests that ran.
        passed: How many passed.
        failed: The names of those that did not.
    """

    version: str
    date: str
    commit: str
    tests: str
    passed: int
    failed: list[str] = field(default_factory=list)


def page(results: Sequence[Result]) -> str:
    """Return the page, oldest version first."""
    rows = [
        f"| {r.version} | {r.passed} | {len(r.failed)} | `{r.tests}` | {r.date} | {r.commit} |"
        for r in results
    ]
    text = _HEAD + "\n".join(rows) + "\n"
    for result in results:
        if result.failed:
            names = "\n".join(f"- `{name}`" for name in result.failed)
            text += f"\n## Failed on {result.version}\n\n{names}\n"
    return text
