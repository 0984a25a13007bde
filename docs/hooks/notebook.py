"""Turns a notebook into a page: text as it stands, code in blocks, outputs below their code.

A converter of Jupyter's would load scripts from the network into the page.
"""

import json
from collections.abc import Iterator
from typing import Any


def on_page_read_source(page: Any, config: Any) -> str | None:  # Any: mkdocs' own types
    """Return the Markdown of a notebook; None leaves any other page to mkdocs."""
    if not page.file.src_uri.endswith(".ipynb"):
        return None
    return markdown_of(json.loads(page.file.content_string))


def on_files(files: Any, config: Any) -> Any:  # Any: as above
    """Make pages of notebooks, which mkdocs would copy as they are."""
    from mkdocs.structure.files import File

    class Notebook(File):
        def is_documentation_page(self) -> bool:
            return True

    for file in [each for each in files if each.src_uri.endswith(".ipynb")]:
        files.remove(file)
        files.append(
            Notebook(file.src_uri, config.docs_dir, config.site_dir, config.use_directory_urls)
        )
    return files


def markdown_of(notebook: dict[str, Any]) -> str:  # Any: nbformat's JSON
    """Return the cells one below the other."""
    return "\n\n".join(part for cell in notebook["cells"] for part in _cell(cell)) + "\n"


def _cell(cell: dict[str, Any]) -> Iterator[str]:
    text = _text(cell["source"]).strip("\n")
    if cell["cell_type"] == "markdown":
        yield text
    elif cell["cell_type"] == "code" and text:
        yield f"```python\n{text}\n```"
        for output in cell.get("outputs", []):
            yield from _output(output)


def _output(output: dict[str, Any]) -> Iterator[str]:
    data = output.get("data", {})
    if "image/png" in data:
        yield f"![output](data:image/png;base64,{_text(data['image/png']).strip()})"
        return
    text = _text(output.get("text", data.get("text/plain", ""))).strip("\n")
    if text:
        yield f"```text\n{text}\n```"


def _text(source: str | list[str]) -> str:
    return source if isinstance(source, str) else "".join(source)
