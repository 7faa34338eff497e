"""A hook of mkdocs: adds to the site what is made of other things, so that nothing is written
twice.

Every file of docs/decisions comes into the navigation, and the API reference is made of the OpenAPI
document that a coordinator answers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from infra.site.api_page import api_page
from infra.site.dialect import with_empty_lines
from infra.site.openapi import openapi_document

SECTION = "Why"


def on_config(config: Any) -> Any:
    """Adds the decisions to the section `Why` of mkdocs' configuration."""
    folder = Path(config["docs_dir"])
    section = next(entry[SECTION] for entry in config["nav"] if SECTION in entry)
    section += [
        {_title(file): file.relative_to(folder).as_posix()}
        for file in sorted((folder / "decisions").glob("*.md"))
    ]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds api.md and openapi.json to the site's files."""
    from mkdocs.structure.files import File  # here: only who builds the site has mkdocs

    document = openapi_document()
    files.append(File.generated(config, "api.md", content=api_page(document)))
    text = json.dumps(document, indent=1)
    files.append(File.generated(config, "openapi.json", content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Lets lists and tables follow a paragraph at once, as they do on forges."""
    return with_empty_lines(markdown)


def _title(file: Path) -> str:
    """Returns the heading of a decision, which is its first line."""
    return file.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ").strip()
