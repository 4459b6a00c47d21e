"""What a compiled program says of itself: its collectives, and the memory that it takes.

Collectives are read from the text of the optimised program, `compiled.as_text()`. The body of a
loop stands there once; what is in it counts as often as the loop runs: what XLA says of that
(known_trip_count), or what its condition compares a counter with.
"""

import math
import re
from collections import Counter
from typing import Any, NamedTuple

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
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_CHAIN = re.compile(r'channel_id=(\d+).*chain_id="')
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z\d]*)\[([\d,]*)\]")


def compiled_bytes(sizes: Any) -> int:
    """All of what `memory_analysis()` of a compiled program lists, for a device."""
    return (
        sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        - sizes.alias_size_in_bytes
        + sizes.temp_size_in_bytes
        + sizes.generated_code_size_in_bytes
    )


def collectives(hlo: str) -> dict[str, Collective]:
    """{"all-reduce": Collective(...)} of a program, without the kinds it has none of.

    Of a loop of unknown length one trip is counted; of a conditional, all branches.
    """
    bodies, entry = _computations(hlo)
    counts, num_bytes, chains = Counter(), Counter(), set()

    def visit(computation: str, times: int) -> None:
        sizes: dict[str, int] = {}
        for name, result, kind, operands, rest in bodies[computation]:
            sizes[name] = _bytes(result)
            kind, started = kind.removesuffix("-start"), kind.endswith("-start")
            if chain := _CHAIN.search(rest):  # on a TPU one runs piece by piece beside others' work
                if kind in KINDS and chain[1] in chains:
                    continue
                chains.add(chain[1])
            if kind in KINDS:
                given = sum(sizes.get(x, 0) for x in re.findall(r"([\w.\-]+)(?:,|$)", operands))
                # What an asynchronous one gives holds its operands as well.
                gives = sizes[name] - given if started and result[0] == "(" else sizes[name]
                if computation.startswith("all-reduce-scatter"):  # so a TPU's compiler writes it
                    kind = "reduce-scatter"
                counts[kind] += times
                num_bytes[kind] += times * max(given, gives)
                continue
            trips = _trips(rest, bodies)
            for one, several in _CALLED.findall(rest):
                for called in re.findall(r"[\w.\-]+", one or several):
                    visit(called, times * trips)

    visit(entry, 1)
    return {kind: Collective(counts[kind], num_bytes[kind]) for kind in KINDS if counts[kind]}


def _trips(rest: str, bodies: dict[str, list[tuple[str, ...]]]) -> int:
    """How often what an operation calls is run; a counter is taken to go from 0 by 1."""
    if known := _TRIPS.search(rest):
        return int(known[1])
    condition = _CONDITION.search(rest)
    lines = bodies[condition[1]] if condition else []
    numbers = {name: x for name, _, kind, x, _ in lines if kind == "constant" and x.isdigit()}
    for _, _, kind, operands, attributes in lines:
        if kind == "compare" and "direction=LT" in attributes:
            limit = re.findall(r"[\w.\-]+", operands)[-1]
            return int(numbers.get(limit, 1))
    return 1


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
