"""What all dashboards have in common: their frame, their variables, and the look of panels."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import (
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

TAG = "sandboxpool"
DATASOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="${datasource}")
_WIDTH = 24

Panel = stat.Panel | statetimeline.Panel | table.Panel | timeseries.Panel
Row = tuple[str, Sequence[Panel]]


@dataclass(frozen=True, slots=True)
class Query:
    """One expression of a panel, with the name of its series, or of its column in a table."""

    expr: str
    name: str


@dataclass(frozen=True, slots=True)
class Colours:
    """The colour below the first bound is green; the others begin at their bounds."""

    steps: tuple[tuple[float, str], ...] = ()
    base: str = "green"

    def build(self) -> builders.ThresholdsConfig:
        """Return them as thresholds."""
        first = dashboard.Threshold(value=None, color=self.base)
        others = [dashboard.Threshold(value=value, color=color) for value, color in self.steps]
        mode = dashboard.ThresholdsMode.ABSOLUTE
        return builders.ThresholdsConfig().mode(mode).steps([first, *others])


def runbook(*alerts: str) -> str:
    """Name the pages of alerts, as the last part of a description.

    The chart replaces these paths by `metrics.prometheusRule.runbookUrl`, and Grafana shows URLs in
    descriptions as links.
    """
    pages = ", ".join(f"docs/runbooks/{alert}.md" for alert in alerts)
    return f" Runbook: {pages}"


NEUTRAL = Colours(base="blue")
BAD_IF_ANY = Colours(((1, "red"),))


def board(
    title: str,
    uid: str,
    description: str,
    variables: Iterable[builders.QueryVariable],
    rows: Iterable[Row],
) -> builders.Dashboard:
    """Return a dashboard; its panels are numbered in their order."""
    others = (
        builders.DashboardLink("SandboxPool")
        .type(dashboard.DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .keep_time(True)
    )
    built = (
        builders.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG])
        .readonly()
        .timezone(common.TimeZoneBrowser)
        .time("now-1h", "now")
        .refresh("30s")
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .links([others])
        .with_variable(
            builders.DatasourceVariable("datasource").label("Data source").type("prometheus")
        )
    )
    for variable in variables:
        built.with_variable(variable)
    for name, panels in rows:
        built.with_row(builders.Row(name))
        for panel in panels:
            built.with_panel(panel)
    for number, panel_or_row in enumerate(built.build().panels or [], 1):
        panel_or_row.id_val = number
    return built


def to_json(built: builders.Dashboard) -> str:
    """Return the text of a dashboard, the same for the same input."""
    return json.dumps(built.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def variable(
    name: str, label: str, values: str, *, anything: bool = True
) -> builders.QueryVariable:
    """Return a variable with several values, all of them at first.

    Args:
        name: its name.
        label: what people see.
        values: a query of Grafana's, such as ``label_values(METRIC, LABEL)``.
        anything: whether All is any value, so that Grafana need not list thousands of pools in a
            query. Otherwise All is the values that the query has found.
    """
    everything = dashboard.VariableOption(selected=True, text="All", value="$__all")
    built = (
        builders.QueryVariable(name)
        .label(label)
        .datasource(DATASOURCE)
        .query(values)
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .current(everything)
    )
    return built.all_value(".*") if anything else built


def number(
    title: str,
    description: str,
    expr: str,
    unit: str,
    colours: Colours = NEUTRAL,
    *,
    name: str = "",
) -> stat.Panel:
    """Return one figure with its course, a sixth of the width; several with names if there are."""
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .span(_WIDTH // 6)
        .height(4)
        .unit(unit)
        .thresholds(colours.build())
        .color_mode(common.BigValueColorMode.VALUE)
        .graph_mode(common.BigValueGraphMode.AREA)
        .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
        .with_target(_target(Query(expr, name or title), "A"))
    )


def graph(
    title: str,
    description: str,
    *queries: Query,
    unit: str,
    stacked: bool = False,
    thirds: int = 0,
    limit: float | None = None,
) -> timeseries.Panel:
    """Return curves over time, half of the width or some thirds of it.

    Args:
        title: what is shown.
        description: what it means, and what to do.
        queries: the curves.
        unit: of the axis.
        stacked: whether the curves are parts of a sum.
        thirds: the width in thirds; 0 for half.
        limit: the value above which the operator or an SRE has to act, as a red line.
    """
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .span(thirds * _WIDTH // 3 or _WIDTH // 2)
        .height(8)
        .unit(unit)
        .min(0)
        .line_width(1)
        .fill_opacity(60 if stacked else 5)
        .show_points(common.VisibilityMode.NEVER)
        .legend(
            common_builders.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.LIST)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs([])
        )
        .tooltip(
            common_builders.VizTooltipOptions()
            .mode(common.TooltipDisplayMode.MULTI)
            .sort(common.SortOrder.DESCENDING)
        )
    )
    if stacked:
        mode = common.StackingMode.NORMAL
        panel.stacking(common_builders.StackingConfig().mode(mode).group("A"))
    if limit is not None:
        style = common.GraphTresholdsStyleMode.LINE
        panel.thresholds(Colours(((limit, "red"),), base="transparent").build())
        panel.thresholds_style(common_builders.GraphThresholdsStyleConfig().mode(style))
    for query, ref in zip(queries, _REFS, strict=False):
        panel.with_target(_target(query, ref))
    return panel


def states(
    title: str, description: str, query: Query, texts: dict[int, tuple[str, str]]
) -> statetimeline.Panel:
    """Return a line of coloured states for each series, half of the width.

    Args:
        title: what is shown.
        description: what it means, and what to do.
        query: the series.
        texts: the text and the colour of each value.
    """
    return (
        statetimeline.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .span(_WIDTH // 2)
        .height(8)
        .unit("none")
        .mappings([_mapping(texts)])
        .show_value(common.VisibilityMode.NEVER)
        .with_target(_target(query, "A"))
    )


def _mapping(texts: dict[int, tuple[str, str]]) -> dashboard.ValueMap:
    """Return the mapping of values to texts and colours."""
    return dashboard.ValueMap(
        options={
            str(value): dashboard.ValueMappingResult(text=text, color=colour, index=place)
            for place, (value, (text, colour)) in enumerate(texts.items())
        }
    )


def mark(panel: table.Panel, column: str, texts: dict[int, tuple[str, str]]) -> None:
    """Show texts with colours instead of the values of a column."""
    panel.override_by_name(
        column,
        [
            dashboard.DynamicConfigValue(id_val="mappings", value=[_mapping(texts)]),
            dashboard.DynamicConfigValue(id_val="custom.cellOptions", value={"type": "color-text"}),
        ],
    )


def rows_of(
    title: str,
    description: str,
    *queries: Query,
    labels: dict[str, str],
    width: int = _WIDTH,
) -> table.Panel:
    """Return a table: a row for each combination of labels, a column for each query.

    Args:
        title: what is shown.
        description: what it means, and what to do.
        queries: the columns; all have the same labels.
        labels: the heading of each label's column, in their order.
        width: of 24.
    """
    values = {f"Value #{ref}": q.name for q, ref in zip(queries, _REFS, strict=False)}
    if len(queries) == 1:
        values = {"Value": queries[0].name}
    headings = labels | values
    panel = (
        table.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .span(width)
        .height(8)
        .unit("short")
        .with_transformation(dashboard.DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(
            dashboard.DataTransformerConfig(
                id_val="organize",
                options={
                    "excludeByName": {"Time": True},
                    "indexByName": {key: place for place, key in enumerate(headings)},
                    "renameByName": headings,
                },
            )
        )
    )
    for query, ref in zip(queries, _REFS, strict=False):
        target = _target(query, ref).format(PromQueryFormat.TABLE).instant()
        panel.with_target(target)
    return panel


_REFS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _target(query: Query, ref: str) -> prometheus.Dataquery:
    target = prometheus.Dataquery().expr(query.expr).ref_id(ref).legend_format(query.name)
    return target.range()
