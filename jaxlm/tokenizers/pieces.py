"""Cutting text at special tokens, and a stream of text at places where a cut changes nothing."""

import re
from collections.abc import Callable, Generator, Iterable, Iterator

# safe_cut(text, start, limit): the last q with start < q <= limit such that tokens of text[:q] and
# text[q:] joined are the tokens of text, whatever follows text; `start` where there is none.
SafeCut = Callable[[str, int, int], int]

BLOCK = 1 << 16  # characters gathered before a cut is looked for


def cut_anywhere(text: str, start: int, limit: int) -> int:
    """The safe cut of tokenizers that read one character at a time."""
    del text
    return max(start, limit)


def special_matcher(special_tokens: Iterable[str]) -> re.Pattern | None:
    """A pattern for the leftmost special token, the longest where several start together."""
    longest_first = sorted(special_tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def split_specials(text: str, matcher: re.Pattern | None) -> Iterator[tuple[str, bool]]:
    """(piece, is_special) pairs that join to `text`; no piece is empty."""
    end = 0
    for match in matcher.finditer(text) if matcher else ():
        if match.start() > end:
            yield text[end : match.start()], False
        yield match.group(), True
        end = match.end()
    if end < len(text):
        yield text[end:], False


def split_stream(
    texts: Iterable[str], special_tokens: Iterable[str], safe_cut: SafeCut
) -> Iterator[tuple[str, bool]]:
    """As `split_specials` of the joined texts, with ordinary pieces cut where that is safe.

    Holds about BLOCK characters and one text; more only while the stream offers no safe cut.
    """
    special_tokens = list(special_tokens)
    matcher, longest = special_matcher(special_tokens), max(map(len, special_tokens), default=1)
    waiting: list[str] = []
    size, wanted = 0, BLOCK
    for text in texts:
        waiting.append(text)
        size += len(text)
        if size < wanted:
            continue
        buffer = "".join(waiting)
        done = yield from _certain(buffer, matcher, longest, safe_cut)
        waiting, size = [buffer[done:]], len(buffer) - done
        wanted = max(BLOCK, 2 * size)  # doubling keeps a stream without cuts from being rescanned
    yield from split_specials("".join(waiting), matcher)


def _certain(
    buffer: str, matcher: re.Pattern | None, longest: int, safe_cut: SafeCut
) -> Generator[tuple[str, bool], None, int]:
    """Yields the pieces that later text cannot change; returns how many characters they hold."""
    limit = len(buffer) - longest + 1  # a special token that starts before it is here in full
    done = 0
    while matcher and (match := matcher.search(buffer, done)) and match.start() < limit:
        if match.start() > done:
            yield buffer[done : match.start()], False
        yield match.group(), True
        done = match.end()
    if done < limit:
        cut = safe_cut(buffer, done, limit)
        if cut > done:
            yield buffer[done:cut], False
        return cut
    return done
