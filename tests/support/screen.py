"""A dashboard with its data, without a Grafana: what somebody sees who opens it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any

from support.grafana import Dashboard, fill
from support.prometheus import Prometheus, Sample


@dataclass
class Screen:
    """A dashboard, the values of its variables, and where the data come from.

    Attributes:
        variables: The values that are selected.
        window_seconds: The range of rates.
    """

    dashboard: Dashboard
    prometheus: Prometheus
    variables: dict[str, str]
    window_seconds: int = 30

    def select(self, **variables: str) -> Screen:
        """The same dashboard with other values of variables."""
        return replace(self, variables=self.variables | variables)

    def series(self, panel: str, name: str | None = None) -> list[Sample]:
        """The series of a query, those without a value left out."""
        return self.values(self.dashboard.query(panel, name).expr)

    def values(self, expression: str) -> list[Sample]:
        filled = fill(expression, self.variables, f"{self.window_seconds}s")
        return [each for each in self.prometheus.query(filled) if math.isfinite(each.value)]

    def figure(self, panel: str, name: str | None = None) -> float:
        """The value of a query with one series."""
        (sample,) = self.series(panel, name)
        return sample.value

    def by(self, panel: str, *labels: str, name: str | None = None) -> dict[Any, float]:
        """The values of a query by one label or several."""
        found = {
            tuple(sample.labels.get(label, "") for label in labels): sample.value
            for sample in self.series(panel, name)
        }
        return {key[0] if len(labels) == 1 else key: value for key, value in found.items()}

    def options(self, variable: str) -> set[str]:
        """What a variable offers."""
        query = fill(self.dashboard.variables[variable], self.variables, "")
        selector, label = re.fullmatch(r"label_values\((.*), (\w+)\)", query).groups()  # type: ignore[union-attr]
        return set(self.prometheus.ask(f"label/{label}/values", **{"match[]": selector}))
