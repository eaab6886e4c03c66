"""The texts of a study's page: a Markdown file with a section for each table."""

from collections.abc import Container
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from nlvideo.runtime.errors import UserError, UserFileNotFoundError

TITLE = "title"  # of the returned texts; the text below it is the introduction
INTRODUCTION, ATTENTION, PROTOCOL = "introduction", "attention", "protocol"


def read_readings(path: Path, known: Container[str], names: str) -> dict[str, str]:
    """Returns {section: HTML} of a file: `# Title` with the introduction below it, then `## SECTION`s.

    HTML and pictures in the file stay text: the page is to request nothing.

    Args:
        path: the Markdown file.
        known: the sections that the page has, besides the introduction.
        names: how the sections are named, for the message.

    Raises:
        UserError: the file does not exist, has a section that the page lacks, or headings of another level.
    """
    if not path.is_file():
        raise UserFileNotFoundError(f"--readings {path}: the file does not exist.")
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    parts: dict[str, list[Token]] = {INTRODUCTION: []}
    title, section, tokens = "", INTRODUCTION, markdown.parse(path.read_text(encoding="utf-8"))
    after_heading = 0
    for i, token in enumerate(tokens):
        if token.type == "heading_open":
            text, line = tokens[i + 1].content, f"{path}, line {(token.map or [0])[0] + 1}"
            after_heading = i + 3
            if token.tag == "h1":
                title = text
            elif token.tag != "h2":
                raise UserError(f"{line}: a heading is # or ##, as the page has no others: {text!r}.")
            elif text not in known:
                raise UserError(f"{line}: the page has no section {text!r}; its sections are {names}.")
            else:
                section = text
                parts.setdefault(section, [])
        elif i >= after_heading:
            parts[section].append(token)
    rendered = {key: markdown.renderer.render(part, markdown.options, {}) for key, part in parts.items() if part}
    return rendered | ({TITLE: title} if title else {})
