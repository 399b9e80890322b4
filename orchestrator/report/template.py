"""Pages from the templates beside this file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orchestrator.report import svg


def render(template: str, title: str, **values: Any) -> str:
    """A whole page; drawings go through the filter `svg`."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
    )
    environment.filters["svg"] = Markup  # from plots, where matplotlib has escaped the text
    return environment.get_template(template).render(title=title, palette=svg.PALETTE, **values)
