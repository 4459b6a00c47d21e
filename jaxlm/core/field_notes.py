"""What the source of a config says of its fields: written once, beside them, and shown to users."""

import ast
import inspect
import io
import re
import tokenize


def field_notes(cls: type) -> dict[str, str]:
    """{field: what is said of it} in one line each, of a dataclass and of those it inherits from.

    The comment behind the field, else its entry `name: text` in the docstring, else the comment in
    the lines above it. A field of which nothing is said is missing.
    """
    notes: dict[str, str] = {}
    for owner in reversed(cls.__mro__[:-1]):
        notes |= _own_notes(owner)
    return notes


def _own_notes(cls: type) -> dict[str, str]:
    source = inspect.getsource(cls)
    [tree] = ast.parse(source).body
    assert isinstance(tree, ast.ClassDef)
    behind, above = _comments(source)
    entries = _entries(inspect.getdoc(cls) if cls.__doc__ else None)
    notes = {}
    for node in tree.body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        name, block, line = node.target.id, [], node.lineno - 1
        while line in above:
            block.insert(0, above[line])
            line -= 1
        said = behind.get(node.end_lineno or 0) or entries.get(name) or " ".join(block)
        if said:
            notes[name] = said
    return notes


def _comments(source: str) -> tuple[dict[int, str], dict[int, str]]:
    """{line: comment}, of those behind code and of those with a line to themselves."""
    behind, above = {}, {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            alone = token.line.lstrip().startswith("#")
            (above if alone else behind)[token.start[0]] = token.string.lstrip("# ")
    return behind, above


def _entries(doc: str | None) -> dict[str, str]:
    """{name: text} of the entries of a docstring, each begun by `name:` and gone on further in."""
    entries: dict[str, str] = {}
    name, depth = None, 0
    for line in (doc or "").splitlines():
        indent = len(line) - len(line.lstrip())
        begun = re.match(r"\s*(\w+): (.*)", line)
        if begun and (name is None or indent <= depth):
            name, depth = begun[1], indent
            entries[name] = begun[2]
        elif name and line.strip() and indent > depth:
            entries[name] += " " + line.strip()
        else:
            name = None
    return entries
