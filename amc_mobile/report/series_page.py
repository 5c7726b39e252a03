"""A page of pictures and tables, and each picture as an SVG file of its own; no script, nothing from outside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from amc_mobile.report.html import environment
from amc_mobile.report.sections import Section
from amc_mobile.store import write_text


@dataclass(frozen=True)
class Picture:
    """`key` is the SVG file's name without its ending; an empty `drawing` is left out of the page."""

    key: str
    title: str
    caption: str
    drawing: Markup


@dataclass(frozen=True)
class SeriesPage:
    """`notes` stand under the title, the tables behind the pictures."""

    title: str
    notes: tuple[str, ...]
    pictures: tuple[Picture, ...]
    tables: tuple[Section, ...]


def render_series_page(page: SeriesPage) -> str:
    return environment().get_template("series_page.html.j2").render(page=page)


def svg_file(drawing: Markup) -> str:
    """The whole file of one drawing: with its name space, its style and a background, light or dark."""
    style = environment().get_template("series.css").render()
    background = "svg{background:#fbfaf8}@media (prefers-color-scheme:dark){svg{background:#14171b}}"
    head, rest = str(drawing).split(">", 1)
    opening = head.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return f"{opening}><style>{background}\n{style}</style>{rest}\n"


def write_series_page(page: SeriesPage, path: Path) -> list[Path]:
    """Writes the page and an SVG file per picture beside it; returns their paths."""
    write_text(path, render_series_page(page))
    paths = [path]
    for picture in page.pictures:
        paths.append(path.with_name(f"{picture.key}.svg"))
        write_text(paths[-1], svg_file(picture.drawing))
    return paths
