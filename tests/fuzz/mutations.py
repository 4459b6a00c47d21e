"""Ways to spoil a file: of bytes, and of the JSON in it."""

import json
import struct

from hypothesis import strategies as st

SIZES = (0, 1, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
NAMES = (".", "", "..", "../../x", "/etc/hostname", "/dev/zero", "a\0b", "\ud800", "x" * 300)
EVIL = (
    *SIZES,
    *(-n for n in SIZES[1:]),
    *NAMES,
    *(None, True, False, 0.5, 1e308, -1e308, 5e-324, float("nan"), float("inf"), 10**400),
    *([], {}, [[]], [None], {"a": 1}, [2**40] * 4, [-1], ["x"] * 3),
)
DEEP = "[" * 100_000 + "]" * 100_000


def spoiled(data: bytes) -> st.SearchStrategy[bytes]:
    """`data` with a bit flipped, cut short, a stretch left out or put in, or lying sizes."""
    n = len(data)
    at = st.integers(0, max(0, n - 1))

    def flip(i, bit):
        return data[:i] + bytes([data[i] ^ 1 << bit]) + data[i + 1 :] if data else data

    def write(i, new):
        return data[:i] + new + data[i + len(new) :]

    numbers = [
        struct.pack(code, value % 2 ** (8 * struct.calcsize(code)))
        for code in ("<Q", "<I")
        for value in SIZES
    ]
    # Lengths stand at the beginning of most formats, and at multiples of four.
    early = st.integers(0, min(64, max(0, n // 4 - 1))).map(lambda i: 4 * i)
    return st.one_of(
        st.builds(flip, at, st.integers(0, 7)),
        st.builds(lambda i: data[:i], at),
        st.builds(write, at, st.binary(min_size=1, max_size=9)),
        st.builds(write, st.one_of(at, early), st.sampled_from(numbers)),
        st.builds(lambda i, size: data[:i] + data[i + size :], at, st.integers(1, 64)),
        st.builds(lambda i, size: data[: i + size] + data[i:], at, st.integers(1, 64)),
        st.builds(lambda i, new: data[:i] + new + data[i:], at, st.binary(max_size=40)),
        st.binary(max_size=200),
    )


@st.composite
def edited_json(draw, text: str) -> str:
    """The document with one value, anywhere in it, replaced, left out, doubled or nested deeply."""
    document = json.loads(text)
    spots = list(_spots(document))
    if not spots:
        return draw(st.sampled_from(["7", "[]", "null", DEEP, '"x"']))
    owner, key = draw(st.sampled_from(spots))
    how = draw(st.sampled_from(["replace", "replace", "replace", "drop", "wrap", "rename", "deep"]))
    if how == "replace":
        owner[key] = draw(st.sampled_from(EVIL))
    elif how == "drop":
        del owner[key]
    elif how == "wrap":
        owner[key] = draw(st.sampled_from([[owner[key]], {"x": owner[key]}, [owner[key]] * 2]))
    elif how == "rename" and isinstance(owner, dict):
        owner[draw(st.sampled_from(NAMES))] = owner.pop(key)
    else:
        mark = "0123456789abcdef-deep"
        owner[key] = mark
        return json.dumps(document).replace(f'"{mark}"', DEEP)
    edited = json.dumps(document, ensure_ascii=True)
    if draw(st.integers(0, 9)) == 0:  # the same key twice
        edited = edited.replace("{", '{"a": 1, "a": 2, ', 1)
    return edited


def _spots(value):
    """Every (container, key) in a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _spots(inner)
