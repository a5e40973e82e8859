"""The page: all exhibits in one HTML file that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

import jinja2

from ups_data.files import amount
from ups_data.gallery import template


def page(exhibits: Sequence[dict]) -> str:
    """The gallery of these exhibits, in their order; equal exhibits are equal bytes."""
    folder = resources.files(template)
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["size"] = amount
    return environment.get_template("page.html").render(
        exhibits=exhibits,
        style=folder.joinpath("style.css").read_text(encoding="utf-8"),
        script=folder.joinpath("script.js").read_text(encoding="utf-8"),
    )
