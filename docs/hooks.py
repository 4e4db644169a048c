"""What the site takes from elsewhere in the repository, so that nothing is written twice.

The map of the workspace, the changes and the reports of studies are pages of the site, with their pictures; links to
them stand in the documents as they are right in the repository. The table of settings is made of their declarations.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from rlx2_jax.config import Config

ROOT = Path(__file__).parents[1]

TAKEN = (
    "WORKSPACE.md",
    "CHANGELOG.md",
    "experiments/notebooks/*.ipynb",
    *(f"experiments/results/*/*.{ending}" for ending in ("md", "png", "gif", "json")),
)
"""Files beside `docs/` that are part of the site, by the same paths."""

LEFT_OUT = ("findings.md",)
"""Parts of reports, which are whole without them."""

RAW = re.compile(r"\[([^\]]+)\]\([^)]+\.jsonl\)")
"""Links to recorded runs, which are too large for a site and stay in the repository."""

INLINE = re.compile(r"<code>[^<]*</code>")
"""Code in a sentence; blocks of code have elements inside."""

FLAG = re.compile(r"--\w+")
"""A flag's name."""

SETTINGS = "<!-- settings -->"
"""Where the table of settings goes."""


def on_config(config: Any) -> Any:
    """Leave out the page of a server for addresses that are not there: its links lead nowhere on a disk."""
    config.theme.static_templates.discard("404.html")
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add what is taken from elsewhere."""
    for pattern in TAKEN:
        for path in sorted(ROOT.glob(pattern)):
            if path.name not in LEFT_OUT:
                name = path.relative_to(ROOT).as_posix()
                files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **rest: Any) -> str:
    """Lead links to the places that things have in the site, and put in the table of settings."""
    up = "../" * (page.file.src_uri.count("/") + 1)
    for taken in ("WORKSPACE.md", "CHANGELOG.md", "experiments/notebooks/", "experiments/results/"):
        markdown = markdown.replace(f"]({up}{taken}", f"]({up.removeprefix('../')}{taken}")
    return RAW.sub(r"`\1`", markdown).replace(SETTINGS, settings_table())


def on_page_content(html: str, page: Any, **rest: Any) -> str:
    """Keep the hyphens that a flag begins with beside its name, where a browser would end a line between them."""
    return INLINE.sub(lambda code: FLAG.sub(r'<span class="flag">\g<0></span>', code[0]), html)


def settings_table() -> str:
    """Every setting: its flag, its default, and what it is."""
    defaults = Config()
    lines = ["| flag | default | what |", "|---|---|---|"]
    for field in dataclasses.fields(Config):
        default = getattr(defaults, field.name)
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        what = str(field.metadata["help"]).replace("|", "\\|")
        lines.append(f"| `--{field.name}` | {'' if default is None else f'`{shown}`'} | {what} |")
    return "\n".join(lines)
