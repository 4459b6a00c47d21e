"""Which collectives a compiled program runs, how often, and over how many bytes.

Read from the text of the optimised program, `compiled.as_text()`. The body of a loop stands there
once; what is in it counts as often as XLA says that the loop runs (known_trip_count).
"""

import math
import re
from collections import Counter
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


class Collective(NamedTuple):
    """All collectives of one kind in one run of a program, on one device.

    num_bytes: of what goes in or of what comes out, whichever is more: the array before it is
    reduced or scattered, or after it is gathered.
    """

    count: int
    num_bytes: int


_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_OPERATION = re.compile(r"(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(.*)")
_CALLED = re.compile(
    r"(?:body|calls|to_apply|(?:true|false)_computation)=%?([\w.\-]+)"
    r"|branch_computations=\{([^}]*)\}"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z\d]*)\[([\d,]*)\]")


def collectives(hlo: str) -> dict[str, Collective]:
    """{"all-reduce": Collective(...)} of a program, without the kinds it has none of.

    Of a loop that XLA does not know the length of, one trip is counted; of a conditional, all
    branches.
    """
    bodies, entry = _computations(hlo)
    counts, num_bytes = Counter(), Counter()

    def visit(computation: str, times: int) -> None:
        sizes: dict[str, int] = {}
        for name, result, kind, operands, rest in bodies[computation]:
            sizes[name] = _bytes(result)
            kind, started = kind.removesuffix("-start"), kind.endswith("-start")
            if kind in KINDS:
                given = sum(sizes.get(x, 0) for x in re.findall(r"([\w.\-]+)(?:,|$)", operands))
                # What an asynchronous one gives holds its operands as well.
                gives = sizes[name] - given if started and result[0] == "(" else sizes[name]
                counts[kind] += times
                num_bytes[kind] += times * max(given, gives)
                continue
            trips = _TRIPS.search(rest)
            for one, several in _CALLED.findall(rest):
                for called in re.findall(r"[\w.\-]+", one or several):
                    visit(called, times * (int(trips[1]) if trips else 1))

    visit(entry, 1)
    return {kind: Collective(counts[kind], num_bytes[kind]) for kind in KINDS if counts[kind]}


def _computations(hlo: str) -> tuple[dict[str, list[tuple[str, ...]]], str]:
    """{computation: (name, result, operation, operands, rest) of each line}; the one to be run."""
    bodies: dict[str, list[tuple[str, ...]]] = {}
    entry, lines = "", []
    for line in map(str.strip, hlo.splitlines()):
        if found := _OPERATION.match(line):
            lines.append(found.groups())
        elif found := _COMPUTATION.match(line):
            lines = bodies.setdefault(found[2], [])
            entry = found[2] if found[1] else entry
    return bodies, entry


def _bytes(shape: str) -> int:
    """Of "f32[8,4]{1,0}", or of a tuple of such."""
    return sum(
        math.prod(int(size) for size in sizes.split(",") if size) * _width(dtype)
        for dtype, sizes in _ARRAY.findall(shape)
    )


def _width(dtype: str) -> int:
    """Bytes of a number: 4 of "f32", 2 of "bf16", 1 of "pred" and "f8e4m3"."""
    bits = re.match(r"[a-z]+(\d+)", dtype)
    return max(1, int(bits[1]) // 8) if bits else 1
