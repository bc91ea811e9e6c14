"""The left side of the page: the filter, the distributions, the table of episodes, and the outliers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from nicegui import run, ui

from gym_replay.errors import GymReplayError
from gym_replay.viewing.charts import histogram
from gym_replay.viewing.episodes import Choice, Distribution, EpisodeTable
from gym_replay.viewing.labelling import apply_labels
from gym_replay.viewing.outliers import OutlierReport, find_outliers
from gym_replay.viewing.text import counted, number

if TYPE_CHECKING:
    from gym_replay.viewing.episodes import Ints

_PER_PAGE = 50
_MOST_OUTLIERS = 200

_BODY = """
<q-tr :props="props" :class="props.row.mark" @click="() => $parent.$emit('chosen', props.row.index)">
  <q-td v-for="col in props.cols" :key="col.name" :props="props"
        :class="col.value === 'good' || col.value === 'bad' ? col.value : ''">{{ col.value }}</q-td>
</q-tr>
"""
"""A row of the table. Vue writes what is in double braces as text."""


class Browser:
    """Chooses an episode of a table.

    Args:
        table: the episodes.
        on_open: called with the index of the episode that was chosen.

    Attributes:
        chosen: the indices of the episodes that are shown, in their order.
    """

    def __init__(self, table: EpisodeTable, on_open: Callable[[int], Any]) -> None:
        self._table, self._on_open = table, on_open
        self._choice = Choice()
        self.chosen: Ints = np.arange(len(table))
        self._page = 1
        self._marked: list[int] = []
        self._charts: dict[str, Any] = {}
        self._facts: dict[str, Any] = {}
        self._distributions: dict[str, Distribution] = {}
        self._outliers_wanted = False
        self._build()

    # --- what there is to see ---

    def _build(self) -> None:
        with ui.element("div").classes("gr-panel"):
            self._condition = (
                ui.input(placeholder="episode_return > 300 and not truncated")
                .props('outlined dense clearable debounce="350" spellcheck="false" autocomplete="off"')
                .classes("gr-mono")
                .style("width: 100%")
                .on_value_change(self._condition_changed)
            )
            self._fault = ui.element("pre").classes("gr-fault")
            with self._fault:
                self._fault_text = ui.label()
            self._fault.set_visibility(False)
            with ui.element("div").classes("gr-row").style("margin-top: 8px; min-height: 22px"):
                self._count = ui.label().classes("gr-small gr-number")
                self._chips = ui.element("div").classes("gr-row")
                self._labelled = ui.label().classes("gr-small gr-link gr-labelled").on("click", self._ask_to_apply)
            with ui.element("div").classes("gr-histograms"):
                for column in self._table.distributed:
                    self._build_histogram(column.name, column.title)
        with ui.element("div").classes("gr-panel gr-list"):
            with ui.tabs().classes("gr-tabs").props("dense align=left no-caps indicator-color=primary") as tabs:
                episodes = ui.tab("Episodes")
                outliers = ui.tab("Outliers")
            with ui.tab_panels(tabs, value=episodes, animated=False, on_change=self._tab_changed):
                with ui.tab_panel(episodes):
                    self._build_table()
                with ui.tab_panel(outliers):
                    self._outliers = ui.element("div").classes("gr-outliers")

    def _build_histogram(self, name: str, title: str) -> None:
        with ui.element("div"):
            with ui.element("div").classes("gr-apart"):
                ui.label(title).classes("gr-title")
                self._facts[name] = ui.label().classes("gr-small gr-number")
            chart = ui.echart({"series": []}, on_point_click=lambda event: self._pick(name, event.data_index))
            self._charts[name] = chart.classes("gr-histogram")

    def _columns(self) -> list[dict[str, Any]]:
        """The columns as Quasar wants them; titles are values, and never names."""
        return [
            {
                "name": f"c{at}",
                "field": f"c{at}",
                "label": column.title,
                "align": "right" if column.is_number else "left",
                "sortable": True,
            }
            for at, column in enumerate(self._table.columns)
        ]

    def _build_table(self) -> None:
        pagination = {"rowsPerPage": _PER_PAGE, "page": 1, "rowsNumber": len(self._table)}
        self._view = ui.table(columns=self._columns(), rows=[], row_key="index", pagination=pagination)
        self._view.classes("gr-table").props(
            'dense flat binary-state-sort :rows-per-page-options="[50]" no-data-label="no episodes"'
        )
        self._view.add_slot("body", _BODY)
        self._view.on("request", self._requested, ["pagination"])
        self._view.on("chosen", lambda event: self._on_open(int(event.args)))

    # --- what is chosen ---

    async def show(self) -> None:
        """Choose anew and show what there is."""
        table, choice = self._table, self._choice

        def compute() -> tuple[Ints, dict[str, Distribution]]:
            chosen = table.choose(choice)
            return chosen, {column.name: table.distribution(column.name, chosen) for column in table.distributed}

        try:
            self.chosen, self._distributions = await run.io_bound(compute)
        except GymReplayError as error:
            self._fault_text.text = str(error)
            self._fault.set_visibility(True)
            return
        self._fault.set_visibility(False)
        whole, part = len(table), len(self.chosen)
        self._count.text = (
            f"{part:,} of {counted(whole, 'episode')}" if part < whole else f"all {counted(whole, 'episode')}"
        )
        self._show_chips()
        self._show_labelled()
        for name in self._charts:
            self._show_histogram(name)
        self.show_rows()

    def _show_chips(self) -> None:
        self._chips.clear()
        titles = {column.name: column.title for column in self._table.columns}
        with self._chips:
            for name, (low, high) in self._choice.ranges.items():
                with ui.element("span").classes("gr-chip"):
                    ui.label(f"{number(low)} ≤ {titles[name]} < {number(high)}")
                    ui.button(icon="close", on_click=lambda name=name: self._drop(name)).props("flat dense")

    def _show_labelled(self) -> None:
        count = sum(self._table.labelled.values())
        self._labelled.text = f"{count:,} labelled · make a meta field" if count else ""

    def _ask_to_apply(self) -> None:
        with ui.dialog() as dialog, ui.card().classes("gr-dialog"):
            ui.label("Make a meta field of the labels?").classes("gr-title")
            ui.label(
                "Writes the labels into the records of their episodes, as the meta field 'label', and takes them out "
                "of labels.json. Copies and exports then have them. Nobody may record into the folder at the time."
            )
            with ui.element("div").classes("gr-row").style("justify-content: flex-end; width: 100%"):
                ui.button("Cancel", on_click=dialog.close).props("flat no-caps")
                ui.button("Make it", on_click=lambda: self._apply(dialog)).props("unelevated no-caps")
        dialog.open()

    async def _apply(self, dialog: Any) -> None:
        dialog.close()
        try:
            for folder in self._table.labelled:
                await run.io_bound(apply_labels, folder)
            await run.io_bound(self._table.refresh)
        except (GymReplayError, OSError) as error:
            ui.notify(str(error), type="negative", multi_line=True)
        await self.show()

    def _show_histogram(self, name: str) -> None:
        found = self._distributions.get(name)
        if found is None or not found.counts.sum():
            return
        values = self._table.numbers(name)[self.chosen]
        values = values[np.isfinite(values)]
        self._facts[name].text = _range(values)
        self._charts[name].options.clear()
        self._charts[name].options.update(histogram(found, self._choice.ranges.get(name)))
        self._charts[name].update()

    def show_rows(self) -> None:
        """Show the rows of the page that is looked at."""
        self._page = min(self._page, max(-(-len(self.chosen) // _PER_PAGE), 1))
        indices = self.chosen[(self._page - 1) * _PER_PAGE : self._page * _PER_PAGE]
        rows = []
        for index, cells in zip(indices.tolist(), self._table.rows(indices), strict=True):
            mark = ("on" if index == self._marked[0] else "second") if index in self._marked else ""
            rows.append({"index": index, "mark": mark, **{f"c{at}": cell for at, cell in enumerate(cells)}})
        names = [column.name for column in self._table.columns]
        sort = f"c{names.index(self._choice.sort)}" if self._choice.sort else None
        self._view.pagination = {
            "page": self._page,
            "rowsPerPage": _PER_PAGE,
            "rowsNumber": len(self.chosen),
            "sortBy": sort,
            "descending": self._choice.descending,
        }
        if self._view.columns != (columns := self._columns()):
            self._view.columns = columns
        self._view.rows = rows

    async def _requested(self, event: Any) -> None:
        asked = event.args["pagination"]
        by = asked.get("sortBy")
        sort = self._table.columns[int(by[1:])].name if by else ""
        self._page = int(asked.get("page") or 1)
        descending = bool(asked.get("descending"))
        if (sort, descending) != (self._choice.sort, self._choice.descending):
            self._choice = replace(self._choice, sort=sort, descending=descending)
            await self.show()
        else:
            self.show_rows()

    async def _condition_changed(self, event: Any) -> None:
        self._choice = replace(self._choice, where=(event.value or "").strip())
        self._page = 1
        await self.show()

    async def _pick(self, name: str, bar: int) -> None:
        edges = self._distributions[name].edges
        span = float(edges[bar]), float(edges[bar + 1])
        ranges = dict(self._choice.ranges)
        if ranges.pop(name, None) != span:
            ranges[name] = span
        self._choice, self._page = replace(self._choice, ranges=ranges), 1
        await self.show()

    async def _drop(self, name: str) -> None:
        ranges = {other: span for other, span in self._choice.ranges.items() if other != name}
        self._choice = replace(self._choice, ranges=ranges)
        await self.show()

    def mark(self, indices: list[int]) -> None:
        """Mark the rows of the episodes that are looked at, and go to the page of the first one."""
        self._marked = indices
        if indices:
            at = np.flatnonzero(self.chosen == indices[0])
            if len(at):
                self._page = int(at[0]) // _PER_PAGE + 1
        self.show_rows()

    def neighbour(self, index: int, step: int) -> int | None:
        """The episode that stands so many rows after another one; None where there is none."""
        at = np.flatnonzero(self.chosen == index)
        to = int(at[0]) + step if len(at) else 0
        return int(self.chosen[to]) if 0 <= to < len(self.chosen) else None

    # --- outliers ---

    async def _tab_changed(self, event: Any) -> None:
        if event.value == "Outliers" and not self._outliers_wanted:
            self._outliers_wanted = True
            await self._show_outliers(4.0)

    async def _show_outliers(self, seconds: float) -> None:
        self._outliers.clear()
        with self._outliers, ui.element("div").classes("gr-empty"):
            ui.label("Looking at the rows of all episodes …")
        report = await run.io_bound(find_outliers, self._table, seconds=seconds)
        self._outliers.clear()
        with self._outliers:
            self._list_outliers(report)

    def _list_outliers(self, report: OutlierReport) -> None:
        whole = report.looked_at == report.count
        shown = f"{len(report.found):,} of {report.count:,} episodes lie far out."
        rows = "" if whole else f" Rows of {report.looked_at:,} were looked at, returns and lengths of all."
        with ui.element("div").classes("gr-row").style("justify-content: space-between; padding: 4px 0"):
            ui.label(shown + rows).classes("gr-small")
            if not whole:
                look: Callable[[], Awaitable[None]] = lambda: self._show_outliers(0)  # noqa: E731
                ui.button("Look at all", on_click=look).props("flat dense size=sm")
        for outlier in report.found[:_MOST_OUTLIERS]:
            item = ui.element("div").classes("gr-outlier")
            item.on("click", lambda index=outlier.index: self._on_open(index))
            with item:
                ui.label(self._table.name_of(self._table.episode(outlier.index))).classes("gr-title")
                for reason in outlier.reasons[:8]:
                    ui.label(reason).classes("gr-small")


def _range(values: Any) -> str:
    """The least value, the median and the largest."""
    if not len(values):
        return "none"
    low, high = number(values.min()), number(values.max())
    return f"all {low}" if low == high else f"{low} … {number(np.median(values))} … {high}"
