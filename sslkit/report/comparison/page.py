"""A comparison as one HTML page that needs nothing from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby

from sslkit.recipe import hashed_view, recipe_hash
from sslkit.recipe.yaml_positions import dump_document
from sslkit.report.harmless import in_html

from .figures import draw_all
from .side_by_side import Comparison
from .svg import Picture, svg_text
from .tables import GROUP, Table, heading, text_tables

_CAPTIONS = {
    "learning_curves": "Learning curves: mean over seeds, each seed as a thin line and, from three "
    "seeds on, the 95 % interval of the mean by Student's t as a band.",
    "accuracy_against_time": "The same against training time, evaluation not counted.",
    "final_accuracies": "What the table says: mean and 95 % interval over seeds, each seed as a "
    "stroke, and the baselines as lines.",
}
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1c2430;max-width:1340px;margin:2rem auto}
body{padding:0 1rem}p,ul,figcaption{max-width:75ch}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9rem}
.wide{overflow-x:auto}
th,td{padding:.3rem .8rem;text-align:left;border-bottom:1px solid #dde2e8;white-space:nowrap}
th{background:#f3f5f8}th[scope=rowgroup]{background:none;padding-top:1rem}
td:first-child{white-space:normal;overflow-wrap:anywhere;min-width:6rem}
figure{margin:1.5rem 0}figcaption{color:#55606e;font-size:.9rem}
svg{max-width:100%;height:auto}pre{background:#f3f5f8;padding:.8rem;overflow-x:auto;font-size:.8rem}
@media(max-width:700px){.wide svg{max-width:45rem}th,td{padding:.3rem .4rem}table{font-size:.8rem}}
"""
_ONE_PANEL = 360.0
"""Width of a figure that has one, points, at most."""
# A browser refuses whatever a mistake in this file would load.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def comparison_pictures(comparison: Comparison) -> list[Picture]:
    """The figures of the numbers."""
    return list(_drawn(comparison))


def html_page(comparison: Comparison, pictures: Sequence[Picture]) -> str:
    """The page, with these figures in it."""
    return "\n".join(_page(comparison, pictures)) + "\n"


def _drawn(comparison: Comparison) -> Iterator[Picture]:
    for name, figure in draw_all(comparison).items():
        caption = _CAPTIONS[name]
        yield Picture(name, svg_text(figure, name, caption), caption)


def _page(comparison: Comparison, pictures: Sequence[Picture]) -> Iterator[str]:
    yield "<!DOCTYPE html>"
    yield '<html lang="en"><head><meta charset="utf-8">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{in_html(comparison.name)}</title><style>{_STYLE}</style></head><body>"
    yield f"<h1>{in_html(comparison.name)}</h1><p>{in_html(heading(comparison))}</p>"
    for table in text_tables(comparison):
        yield from _table(table)
    if comparison.notes:
        yield "<h2>Notes</h2><ul>"
        yield from (f"<li>{in_html(note)}</li>" for note in comparison.notes)
        yield "</ul>"
    for picture in pictures:
        caption = f"<figcaption>{in_html(picture.caption)}</figcaption>"
        yield f'<figure><div class="{_room(picture.svg)}">{picture.svg}</div>{caption}</figure>'
    yield "<h2>Runs</h2>"
    for arm in comparison.arms:
        if not arm.records:
            continue
        runs = ", ".join(f"seed {record.seed}: {record.path.name}" for record in arm.records)
        recipe = dump_document(hashed_view(arm.records[0].recipe))  # no paths, no tracker
        yield f"<h3>{in_html(arm.label)}</h3><p>{in_html(runs)}</p>"
        yield f"<p>Machine: {in_html(arm.records[0].machine)}</p>"
        yield f"<details><summary>Recipe, hash {recipe_hash(arm.records[0].recipe)}</summary>"
        yield f"<pre>{in_html(recipe)}</pre></details>"
    yield "</body></html>"


def _room(svg: str) -> str:
    """The class of a box for a figure: several panels scroll on a narrow screen, where they would
    be too small to read; one is made as narrow as the screen."""
    width = re.search(r'<svg[^>]*? width="([\d.]+)pt"', svg)
    return "fitting" if width is not None and float(width[1]) <= _ONE_PANEL else "wide"


def _table(table: Table) -> Iterator[str]:
    title, heads, rows = table
    grouped = heads[0] == GROUP
    shown = heads[grouped:]
    yield f'<h2>{in_html(title)}</h2><div class="wide"><table><thead><tr>'
    yield "".join(f'<th scope="col">{in_html(head)}</th>' for head in shown) + "</tr></thead>"
    for group, members in groupby(rows, key=lambda row: row[0] if grouped else ""):
        yield "<tbody>"
        if grouped:
            yield f'<tr><th scope="rowgroup" colspan="{len(shown)}">{in_html(group)}</th></tr>'
        for row in members:
            yield f"<tr>{''.join(f'<td>{in_html(cell)}</td>' for cell in row[grouped:])}</tr>"
        yield "</tbody>"
    yield "</table></div>"
