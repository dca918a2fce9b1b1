"""The page of the versions of Kubernetes, and the API servers that can be tested."""

from compat.page import Result, page
from localcluster import builds
from localcluster.paths import REPOSITORY


def result(version: str, *failed: str) -> Result:
    return Result(version, "2026-11-30", "abc1234", "tests/integration", 7, list(failed))


def test_the_page_has_a_row_for_each_version_and_names_what_failed() -> None:
    text = page([result("v1.30.14", "test_pools::test_a", "test_pools::test_b"), result("v1.37.2")])
    assert "| v1.30.14 | 7 | 2 | `tests/integration` | 2026-11-30 | abc1234 |\n" in text
    assert "| v1.37.2 | 7 | 0 | `tests/integration` | 2026-11-30 | abc1234 |\n" in text
    assert "## Failed on v1.30.14\n\n- `test_pools::test_a`\n- `test_pools::test_b`\n" in text
    assert "Failed on v1.37.2" not in text


def test_each_version_has_an_api_server_of_just_that_version() -> None:
    for version in builds.OTHER_VERSIONS:
        binary = builds.BINARIES[builds.apiserver(version)]
        assert builds.kubernetes_version(binary.family).startswith(f"v{version}.")


def test_the_first_of_the_versions_is_the_oldest_that_the_chart_takes() -> None:
    chart = (REPOSITORY / "charts" / "sandboxpool" / "Chart.yaml").read_text()
    assert f'kubeVersion: ">={builds.OTHER_VERSIONS[0]}' in chart
