"""Plain text from what packages hold: white space, hard-wrapped lines, OSIS mark-up."""

import html
import re


def tidy(text: str) -> str:
    """Unix line ends, single spaces, no spaces at line ends, at most one blank line in a row."""
    text = text.replace("\r\n", "\n").replace("\xa0", " ").replace("\u2028", "\n")
    text = re.sub(r"[ \t]+", " ", text)
    text = re.sub(r" *\n *", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def unwrap(text: str) -> str:
    """Join hard-wrapped lines; paragraphs stay apart by a blank line."""
    paragraphs = re.split(r"\n\s*\n", text.replace("\r", ""))
    return tidy("\n\n".join(" ".join(p.split()) for p in paragraphs if p.strip()))


_PARAGRAPH = re.compile(
    r'<(?:div|p|lg|lb|milestone)\b[^>]*(?:x-p|type="paragraph"|introduction|/p)[^>]*>|</?(?:p|lb)\b[^>]*>'
)


def osis_to_text(markup: str) -> str:
    """Text of an OSIS fragment: notes dropped, titles and paragraphs set apart, verse lines on their own line."""
    markup = re.sub(r"<note\b.*?</note>", "", markup, flags=re.DOTALL)
    markup = re.sub(r"<title\b[^>]*>(.*?)</title>", r"\n\n\1\n\n", markup, flags=re.DOTALL)
    markup = _PARAGRAPH.sub("\n\n", markup)
    markup = re.sub(r"<l\b[^>]*>", "\n", markup)
    return html.unescape(re.sub(r"<[^>]+>", "", markup))
