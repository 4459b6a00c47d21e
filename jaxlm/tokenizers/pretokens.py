"""Pre-tokens: the pieces that no merge crosses, their counts, and where a stream may be cut."""

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

import regex

from jaxlm.tokenizers.pieces import SafeCut

# As tiktoken states them (gpt2, cl100k), and as Llama 3 and Qwen 2 published their own; the same
# text goes to tiktoken's regex engine and to Python's, and every pattern covers every character.
# SmolLM cuts out single digits and applies gpt2 to what lies between, so that the blanks before a
# digit stay together.
PATTERNS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    "cl100k": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
        r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
    ),
    "llama3": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "qwen2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "smollm": (r"'(?:[sdmt]|ll|ve|re)|\p{N}| ?\p{L}++| ?[^\s\p{L}\p{N}]++|\s+(?![^\s\p{N}])|\s"),
    "whitespace": r"\S++|\s++",
    "none": r"(?s:.++)",
}

_BLANKS = " \t\r\n"
# Code points that Unicode will never assign stand in for blanks that str.split must not see.
_STAND_INS = _SPACE, _LINE_END, _FIRST_LINE_END = "\ufdd0\ufdd1\ufdd2"
_HIDE = str.maketrans({" ": _SPACE, "\n": _LINE_END})
_SHOW = str.maketrans({_SPACE: " ", _LINE_END: "\n", _FIRST_LINE_END: "\n"})
_MOST_UNITS = 1 << 20


@functools.cache
def _kind(char: str) -> str:
    """L letter, N number, S white space, O any other; ? where Unicode versions may disagree.

    The regex engines of Python and of tiktoken carry different versions of Unicode, so a letter
    or number counts only where version 3.2 has it too, and an unassigned character never.
    """
    if char.isspace():
        return "S" if char in _BLANKS else "?"
    old, new = unicodedata.ucd_3_2_0.category(char), unicodedata.category(char)
    disagree = old[0] != new[0] and (old[0] in "LN" or new[0] in "LN")
    if disagree or new == "Cn":
        return "?"
    return new[0] if new[0] in "LN" else "O"


def _word_ends(left: str, right: str) -> bool:
    """A run of letters or of digits ends here: true of all but whitespace and none.

    None of them has a token that goes on after a letter with anything but a letter, or after a
    digit with anything but a digit, and none looks behind.
    """
    kind = _kind(left)
    return kind in "LN" and _kind(right) not in (kind, "?")


def _gpt2_cut(left: str, right: str) -> bool:
    # White space only ever begins a token of other characters.
    return (right in _BLANKS and not left.isspace()) or _word_ends(left, right)


def _line_keeping_cut(left: str, right: str) -> bool:
    # Here line ends may follow punctuation, so only a space begins a token for certain; a run of
    # white space is cut after its last line end.
    return (
        (right == " " and not left.isspace())
        or (left in "\r\n" and not right.isspace())
        or _word_ends(left, right)
    )


def _whitespace_cut(left: str, right: str) -> bool:
    return (right in _BLANKS and not left.isspace()) or (left in _BLANKS and not right.isspace())


_CUTS = {
    "gpt2": _gpt2_cut,
    "cl100k": _line_keeping_cut,
    "llama3": _line_keeping_cut,
    "qwen2": _line_keeping_cut,
    "smollm": _gpt2_cut,
    "whitespace": _whitespace_cut,
    "none": lambda left, right: False,
}


def safe_cut(pattern: str, nfc: bool = False) -> SafeCut:
    """The last place in a text that is a border of pre-tokens whatever follows.

    nfc: whether the text is brought to that form before it is cut into pre-tokens. Only places
    before ASCII are safe then, for no ASCII character joins what stands before it.
    """
    is_cut = _CUTS[pattern]

    def cut(text: str, start: int, limit: int) -> int:
        for q in range(min(limit, len(text) - 1), start, -1):
            if is_cut(text[q - 1], text[q]) and not (nfc and text[q] > "\x7f"):
                return q
        return start

    return cut


def count_pretokens(pattern: str, texts: Iterable[str]) -> Counter[str]:
    """How often each pre-token occurs in texts that are each cut at safe places.

    Most words occur many times and str.split is far faster than a regex, so a text is first split
    into units, at blanks where every cut is safe, and the regex sees each distinct unit once.
    """
    counts: Counter[str] = Counter()
    units: Counter[str] = Counter()
    matcher = regex.compile(PATTERNS[pattern])
    for text in texts:
        if pattern == "none" or any(stand_in in text for stand_in in _STAND_INS):
            counts.update(matcher.findall(text))
            continue
        first, others = _split_units(text, line_ends=_CUTS[pattern] is not _line_keeping_cut)
        counts.update(matcher.findall(first))
        units.update(others)
        if len(units) > _MOST_UNITS:
            _add_pretokens(counts, matcher, units)
            units.clear()
    _add_pretokens(counts, matcher, units)
    return counts


def _split_units(text: str, *, line_ends: bool) -> tuple[str, list[str]]:
    """`text` cut before each space, or line end, that does not itself follow white space.

    Returns what comes before the first cut, and the other units in the form `_restore` reads.
    """
    blanks = "[ \\n]" if line_ends else "[ ]"
    text = re.sub(rf"\s{blanks}+", lambda run: run[0][0] + run[0][1:].translate(_HIDE), text)
    if line_ends:
        text = text.replace("\n", " " + _FIRST_LINE_END)
    units = text.split(" ")
    return units.pop(0).translate(_SHOW), units


def _restore(unit: str) -> str:
    unit = unit if unit[:1] == _FIRST_LINE_END else " " + unit
    return unit if unit.isascii() else unit.translate(_SHOW)


def _add_pretokens(counts: Counter[str], matcher: regex.Pattern, units: Counter[str]) -> None:
    for unit, count in units.items():
        for pretoken in matcher.findall(_restore(unit)):
            counts[pretoken] += count
