"""The pages of docs/reference."""

import shutil
from pathlib import Path

import pytest

from refgen import __main__ as refgen
from refgen import kinds, metrics, plugin, reasons, text, values
from sandboxpool import client
from sandboxpool.api.reasons import Reason
from sandboxpool.cli.main import COMMANDS


def test_the_page_has_all_that_the_client_exports() -> None:
    page = refgen.render(refgen.REPOSITORY)["client.md"]
    headings = {line[3:] for line in page.splitlines() if line.startswith("## ")}
    rows = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}
    assert (headings - {"Errors"}) | rows == set(client.__all__)
    assert not headings & rows
    for expected in (
        "\n### AsyncSandbox.run\n\n```python\nasync def run(\n    command: Sequence[str],\n",
        "\n### Sandbox.info\n\nProperty: `SandboxInfo`.\n",
        "\n- `ttl` (`int | None`): Seconds from binding",
        "\n| `BindTimeout` | `ClaimError`, `TimeoutError` | No sandbox",
        "\n- `CommandNotStarted`: The sandbox has no such program, or cannot run it.\n",
    ):
        assert expected in page


def test_the_page_of_the_plugin_has_the_help_of_each_command() -> None:
    page = plugin.render()
    headings = [line[3:] for line in page.splitlines() if line.startswith("## ")]
    assert headings == sorted(command.name for command in COMMANDS)
    assert "Usage: kubectl sandboxpool [OPTIONS]" in page
    assert "Usage: kubectl sandboxpool claim [OPTIONS]" in page
    assert max(map(len, page.splitlines())) <= 120


def test_the_page_for_applications_says_what_to_do_about_each_error() -> None:
    page = (refgen.REPOSITORY / "docs" / "client.md").read_text()
    rows = {
        word for line in page.splitlines() if line.startswith("| `") for word in line.split("`")
    }
    errors = {
        item
        for name in client.__all__
        if isinstance(item := getattr(client, name), type)
        and issubclass(item, client.SandboxPoolError)
    }
    # What others are derived from is raised as one of these, or says it all by itself.
    bases = {base for error in errors for base in error.__bases__}
    assert {error.__name__ for error in errors - bases} <= rows


def test_a_page_that_is_not_that_of_the_docstrings_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(
        refgen.REPOSITORY / "operator",
        tmp_path / "operator",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    at = ["--root", str(tmp_path)]
    chart = tmp_path / values.CHART
    shutil.copytree(refgen.REPOSITORY / values.CHART, chart)
    page = tmp_path / refgen.DIRECTORY / "client.md"
    assert refgen.main([*at, "--check"]) == 1
    assert not page.exists()
    assert refgen.main(at) == 0
    assert refgen.main([*at, "--check"]) == 0
    page.write_text(page.read_text() + "By hand.\n")
    assert refgen.main([*at, "--check"]) == 1
    assert "docs/reference/client.md does not match" in capsys.readouterr().err
    defaults = (chart / "values.yaml").read_text()
    (chart / "values.yaml").write_text(defaults.replace("logLevel: INFO", "logLevel: DEBUG"))
    assert refgen.main([*at, "--check"]) == 1
    assert "docs/reference/chart-values.md does not match" in capsys.readouterr().err


def test_the_page_of_reasons_has_each_with_its_meaning_and_cure() -> None:
    page = refgen.render(refgen.REPOSITORY)["reasons.md"]
    headings = [line[4:] for line in page.splitlines() if line.startswith("### ")]
    assert headings == [str(reason) for reason in Reason]
    assert (
        "\n### RuntimeClassNotFound\n\nThe RuntimeClass does not exist.\n\n"
        "**What to do:** Create the class, or correct `spec.runtimeClassName`."
    ) in page
    assert "\n## The nodes (condition NodesServing)\n\n### HandlerServed\n" in page


def test_a_reason_without_docstring_is_refused() -> None:
    source = """
class Reason(StrEnum):
    # The first.
    FINE = "Fine"
    \"\"\"Nothing is wrong.\"\"\"
    BARE = "Bare"
    LAST = "Last"
"""
    with pytest.raises(reasons.UndocumentedReasonError, match="Bare has no docstring"):
        reasons.render(source)


def test_the_pages_of_kinds_have_every_field_that_people_write() -> None:
    pages = kinds.render()
    assert sorted(pages) == ["sandboxclaim.md", "sandboxpool.md", "sandboxruntime.md"]
    pool = pages["sandboxpool.md"]
    for expected in (
        "| `replicas` | integer, default `1` | How many unclaimed sandboxes to keep warm;",
        "| `template` | object, required |",
        "\n### spec.template.spec\n",
        "One of `None`, `PerNode`, `PerSandbox`. |",
        "\n### status.runtime.issues[]\n",
        "\n### status.startup.stages.*\n",
        "| `conditions` | list of objects |",
        "| `allowedMetadataPrefixes` | list of strings |",
        "| HANDLER | `status.runtime.handler` | Handler of the RuntimeClass |",
        "- `nodeName`: a template may not name a node",
    ):
        assert expected in pool
    assert 'Else refused: "must be a number, such as 5, or a percentage' in pool


def test_the_page_of_metrics_has_all_that_a_scrape_can_show() -> None:
    page = metrics.render()
    for expected in (
        "| `sandboxpool_claims_total` | Counter | `namespace`, `pool`, `result`, `source` |",
        "| `sandboxpool_quarantined_nodes` | Gauge | `handler` |",
        "| `sandboxpool_leader` | Gauge |  | 1 in the leader",
        "| `workqueue_depth` | Gauge | `name` |",
        "- `sandboxpool_claim_duration_seconds`: 0.005, 0.01,",
    ):
        assert expected in page


def test_the_page_of_values_has_each_value_of_the_chart() -> None:
    page = values.render(refgen.REPOSITORY / values.CHART)
    for expected in (
        "\n### probe.image\n\nThe operator's own image when empty;",
        '\nOne of `"DEBUG"`, `"INFO"`, `"WARNING"`, `"ERROR"`; default `"INFO"`.\n',
        "\nInteger from 0 to 9; default `2`.\n",
        "all apply:\n\n```yaml\n- names: [team-a, team-b]\n  runtimeClasses: [gvisor]\n",
        "\nMapping; default:\n\n```yaml\nrunAsNonRoot: true\n",
        "excluded.sandboxpool.io/&lt;handler>",
        "([docs/admission.md](../admission.md))",
    ):
        assert expected in page


def test_each_value_of_the_chart_has_a_comment_of_its_own() -> None:
    found = values.read(refgen.REPOSITORY / values.CHART)
    assert [value.name for value in found if not value.comment] == []


def test_text_stays_text() -> None:
    assert text.paragraph("a <b> *c*,\n`<d> *e*`") == r"a &lt;b> \*c\*, `<d> *e*`"
    assert text.cell("one | two") == r"one \| two"
