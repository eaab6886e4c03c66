"""The texts of a study's page: a Markdown file with a section for each table."""

from collections.abc import Callable, Container
from itertools import count
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
        UserError: the file does not exist, is no UTF-8, has a section that the page lacks, or headings of another
            level or within a list or a quotation.
    """
    if not path.is_file():
        raise UserFileNotFoundError(f"--readings {path}: the file does not exist.")
    try:
        source = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"--readings {path}: the file is no UTF-8 text: {error}.") from None
    markdown = _renderer()
    parts: dict[str, list[Token]] = {INTRODUCTION: []}
    title, section, tokens = "", INTRODUCTION, markdown.parse(source)
    after_heading = 0
    for i, token in enumerate(tokens):
        if token.type == "heading_open":
            text, line = tokens[i + 1].content, f"{path}, line {(token.map or [0])[0] + 1}"
            after_heading = i + 3
            if token.level:
                raise UserError(f"{line}: a heading cannot stand in a list or a quotation: {text!r}.")
            if token.tag == "h1":
                if title:
                    raise UserError(f"{line}: the page has one title, {title!r}; sections start with ##: {text!r}.")
                title = "".join(child.content for child in tokens[i + 1].children or [])
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


def _renderer() -> MarkdownIt:
    """Returns what writes the texts: what is wider than the page scrolls by itself, as do the page's own tables."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    rules: dict[str, Callable[..., str]] = markdown.renderer.rules  # type: ignore[attr-defined]
    numbers = count(1)

    def scroll() -> str:  # regions of a page differ in their names
        return f'<div class="scroll" tabindex="0" role="region" aria-label="Part {next(numbers)} of the text">'

    for kind in ("fence", "code_block"):
        usual = rules[kind]
        rules[kind] = lambda *told, usual=usual: f"{scroll()}{usual(*told)}</div>"
    rules["table_open"] = lambda *_: f"{scroll()}<table>"
    rules["table_close"] = lambda *_: "</table></div>"
    return markdown
