"""The dashboards as Grafana reads them: panels, queries, variables."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Query:
    """One query of a panel.

    Attributes:
        panel: The title of the panel.
        name: The name of the series, or of the column in a table.
        expr: The expression, with variables.
    """

    panel: str
    name: str
    expr: str


@dataclass(frozen=True)
class Dashboard:
    """A dashboard from its JSON."""

    model: Object

    @classmethod
    def parse(cls, text: str) -> Dashboard:
        return cls(json.loads(text))

    @property
    def panels(self) -> list[Object]:
        """The panels without the rows."""
        return [panel for panel in self.model["panels"] if panel["type"] != "row"]

    @property
    def variables(self) -> dict[str, str]:
        """The queries of the variables that have one, by name."""
        listed = self.model["templating"]["list"]
        return {each["name"]: each["query"] for each in listed if each["type"] == "query"}

    def queries(self) -> Iterator[Query]:
        for panel in self.panels:
            columns = self._columns(panel)
            for target in panel["targets"]:
                name = columns.get(target["refId"], target["legendFormat"])
                yield Query(panel["title"], name, target["expr"])

    def query(self, panel: str, name: str | None = None) -> Query:
        """The query of a panel; of several, the one with this name."""
        (found,) = [
            query for query in self.queries() if query.panel == panel and name in (None, query.name)
        ]
        return found

    @staticmethod
    def _columns(panel: Object) -> dict[str, str]:
        """The headings of a table's columns by the ids of their queries."""
        renamed: dict[str, str] = {}
        for step in panel["transformations"]:
            renamed |= step["options"].get("renameByName", {})
        return {
            key.rpartition("#")[2] if "#" in key else "A": heading
            for key, heading in renamed.items()
            if key.startswith("Value")
        }


def fill(expression: str, variables: Mapping[str, str], rate_interval: str) -> str:
    """Put values in the places of variables, as Grafana does."""
    values = {**variables, "__rate_interval": rate_interval}
    return re.sub(r"\$(\w+)", lambda found: values[found[1]], expression)
