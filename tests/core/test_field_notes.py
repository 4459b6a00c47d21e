"""What is said of a field is read where it is written: behind it, in the docstring, above it."""

import dataclasses

from jaxlm.core.field_notes import field_notes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
    inherited: int = 1  # of the base
    changed: int = 1  # of the base too


@dataclasses.dataclass(frozen=True, kw_only=True)
class Noted(Base):
    """A config: not an entry of itself, since it is no field.

    listed: in the docstring, and
      others: than that go on with it.
    both: in the docstring.

    Not a part of it: at all.
    """

    listed: int = 1
    both: str = "#"  # behind it # twice
    # Above it,
    # in two lines.
    above: tuple[int, ...] = (
        1,
        2,
    )
    many: tuple[int, ...] = (1,)  # behind its end
    silent: int = 1
    changed: int = 2  # of the class

    def other(self):  # not a field
        local: int = 1  # nor this
        return local


def test_every_place_is_read():
    assert field_notes(Noted) == {
        "inherited": "of the base",
        "changed": "of the class",
        "listed": "in the docstring, and others: than that go on with it.",
        "both": "behind it # twice",
        "above": "Above it, in two lines.",
        "many": "behind its end",
    }
