"""Where a number that is not finite comes from: a function run one equation at a time.

Infinities may be meant, as in a mask that the softmax takes away again. So what is named is not the
first result that is not finite, but the one from which, through results that are not finite, the
output got its value.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

# Equations whose result is their first operand in another form: it keeps the operand's name.
_SAME = (
    *("broadcast_in_dim", "convert_element_type", "copy", "copy_p", "dynamic_slice", "gather"),
    *("reshape", "rev", "sharding_constraint", "slice", "squeeze", "stop_gradient", "transpose"),
)


class Origin(NamedTuple):
    """The equation that made the first value that is not finite of those that led to the output.

    order: how many equations came before. what: "dot_general gives inf, f32[4,16]", or that an
    input was not finite. where: "layer 2, backward, jaxlm/nn/attention.py:71 (masked_softmax)".
    reads: inputs of the function it works on directly, by path, "params/blocks/wq[2]".
    """

    order: int
    is_nan: bool
    what: str
    where: str = ""
    reads: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f" in {self.where}" if self.where else ""
        reads = f", reading {', '.join(self.reads)}" if self.reads else ""
        return f"{self.what}{where}{reads}"


class _Value(NamedTuple):
    """A value on its way: its name if it is an input, and its origin if it is not finite."""

    value: Any
    name: str | None = None
    origin: Origin | None = None


def first_nonfinite(
    fn: Callable[..., Any], args: dict[str, Any], outputs: Callable[[Any], Any] = lambda out: out
) -> Origin | None:
    """Runs `fn(*args.values())` one equation at a time, and follows what is not finite.

    Loops over layers are run one by one, functions inside are entered; a while loop, a branch and
    a kernel are one equation.

    Args:
      args: pytrees by the name that their leaves' paths begin with; "" for none.
      outputs: the part of the result that is asked about; its leaves are taken in order.
    Returns:
      Where the first leaf that is not finite got it from; None where all are finite.
    """
    paths, leaves = [], []
    for name, tree in args.items():
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            rest = jax.tree_util.keystr(path, simple=True, separator="/")
            paths.append("/".join(filter(None, (name, rest))))
            leaves.append(leaf)
    structure = jax.tree.structure(list(args.values()))

    def wanted(*flat):
        return outputs(fn(*jax.tree.unflatten(structure, flat)))

    closed = jax.make_jaxpr(wanted)(*leaves)
    counter = itertools.count()
    values = []
    for path, leaf in zip(paths, leaves, strict=True):
        bad = _kind(leaf)
        origin = Origin(next(counter), bad == "nan", f"{path} has {bad} before the step")
        values.append(_Value(leaf, path, origin if bad else None))
    results = _run(closed.jaxpr, closed.consts, values, (), counter)
    return next((value.origin for value in results if value.origin), None)


def _run(
    jaxpr: Any, consts: Sequence[Any], args: list[_Value], scope: tuple[str, ...], counter: Iterator
) -> list[_Value]:
    """The results of a jaxpr; scope: the layer and the like it belongs to."""
    known = dict(zip(jaxpr.constvars, map(_Value, consts), strict=True))
    known |= zip(jaxpr.invars, args, strict=True)
    eqns = _needed(jaxpr)
    last_use = {v: n for n, eqn in enumerate(eqns) for v in eqn.invars if _is_var(v)}
    last_use |= dict.fromkeys(filter(_is_var, jaxpr.outvars), len(eqns))

    def read(var):
        return known[var] if _is_var(var) else _Value(var.val)

    for n, eqn in enumerate(eqns):
        results = _equation(eqn, [*map(read, eqn.invars)], scope, counter)
        known |= zip(eqn.outvars, results, strict=True)
        for var in {v for v in (*eqn.invars, *eqn.outvars) if _is_var(v)}:
            if last_use.get(var, n) <= n:
                known.pop(var, None)  # memory: nobody asks for it again
    return [read(var) for var in jaxpr.outvars]


def _needed(jaxpr: Any) -> list[Any]:
    """The equations that its results hang on: of a step, not those of the update."""
    wanted, found = set(filter(_is_var, jaxpr.outvars)), []
    for eqn in reversed(jaxpr.eqns):
        if wanted.intersection(eqn.outvars):
            wanted.update(filter(_is_var, eqn.invars))
            found.append(eqn)
    return found[::-1]


def _is_var(var: Any) -> bool:
    return not isinstance(var, Literal)


def _equation(
    eqn: Any, args: list[_Value], scope: tuple[str, ...], counter: Iterator
) -> list[_Value]:
    if "transpose(" in str(eqn.source_info.name_stack) and "backward" not in scope:
        scope = (*scope, "backward")
    inner = next((eqn.params[k] for k in ("jaxpr", "call_jaxpr") if k in eqn.params), None)
    jaxpr, consts = getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())
    if eqn.primitive.name == "scan":
        return _scan(eqn, jaxpr, consts, args, scope, counter)
    if jaxpr is not None and [v.aval.shape for v in jaxpr.invars] == [
        np.shape(arg.value) for arg in args
    ]:
        return _run(jaxpr, consts, args, scope, counter)

    with eqn.ctx.manager:  # the precision and the like that it was traced under
        params = eqn.primitive.get_bind_params(eqn.params)
        results = eqn.primitive.bind(*(arg.value for arg in args), **params)
    results = results if eqn.primitive.multiple_results else [results]
    name = args[0].name if args and eqn.primitive.name in _SAME else None
    order = next(counter)
    before = min(
        (arg.origin for arg in args if arg.origin),
        key=lambda origin: (not origin.is_nan, origin.order),
        default=None,
    )
    values = []
    for result in results:
        bad = _kind(result)
        origin = before
        if bad and before is None:
            place = ", ".join(filter(None, (*scope, _source(eqn))))
            reads = tuple(dict.fromkeys(arg.name for arg in args if arg.name))
            what = f"{eqn.primitive.name} gives {bad}, {jax.typeof(result).str_short()},"
            origin = Origin(order, bad == "nan", what.rstrip(","), place, reads)
        values.append(_Value(result, name, origin if bad else None))
    return values


def _scan(
    eqn: Any,
    jaxpr: Any,
    consts: Sequence[Any],
    args: list[_Value],
    scope: tuple[str, ...],
    counter: Iterator,
) -> list[_Value]:
    """What is scanned over has one axis more outside than inside, and stands last."""

    def num_stacked(outside, inside):
        pairs = zip(outside, inside, strict=True)
        return sum(len(o.aval.shape) > len(i.aval.shape) for o, i in pairs)

    num_sliced = num_stacked(eqn.invars, jaxpr.invars)
    num_carried = len(jaxpr.outvars) - num_stacked(eqn.outvars, jaxpr.outvars)
    num_fixed = len(args) - num_sliced - num_carried
    fixed, carry, sliced = (
        args[:num_fixed],
        args[num_fixed : num_fixed + num_carried],
        args[num_fixed + num_carried :],
    )
    length = eqn.params["length"]
    of_weights = any("/blocks/" in (arg.name or "") for arg in sliced)
    unit = "layer" if of_weights else "part"
    stacked: list[list[_Value]] = [[] for _ in jaxpr.outvars[num_carried:]]
    for i in reversed(range(length)) if eqn.params["reverse"] else range(length):
        each = [_slice(arg, i) for arg in sliced]
        out = _run(jaxpr, consts, [*fixed, *carry, *each], (*scope, f"{unit} {i}"), counter)
        carry = out[:num_carried]
        for parts, value in zip(stacked, out[num_carried:], strict=True):
            parts.append(value)
    results = []
    for parts in stacked:
        found = [part.origin for part in parts if part.origin]
        in_order = parts[::-1] if eqn.params["reverse"] else parts
        whole = _stack([part.value for part in in_order])
        results.append(_Value(whole, None, min(found, key=lambda o: o.order, default=None)))
    return [*carry, *results]


def _slice(arg: _Value, i: int) -> _Value:
    value = _at(arg.value, i)
    return _Value(value, arg.name and f"{arg.name}[{i}]", arg.origin if _kind(value) else None)


def _kind(x: Any) -> str | None:
    """ "nan", "inf", or None for what is finite, or no floating-point number at all."""
    dtype = x.dtype if hasattr(x, "dtype") else np.asarray(x).dtype
    if not jnp.issubdtype(dtype, jnp.inexact):
        return None
    is_finite, has_nan = map(bool, _look(x))
    return None if is_finite else "nan" if has_nan else "inf"


# One program for each shape, of which a step has many.


@jax.jit
def _at(x: Any, i: Any) -> Any:
    return x[i]


@jax.jit
def _stack(parts: list[Any]) -> Any:
    return jnp.stack(parts)


@jax.jit
def _look(x: Any) -> tuple[Any, Any]:
    return jnp.all(jnp.isfinite(x)), jnp.any(jnp.isnan(x))


def _source(eqn: Any) -> str:
    """ "jaxlm/nn/attention.py:71 (masked_softmax)", the innermost line that is not JAX's own."""
    traceback = eqn.source_info.traceback
    for frame in traceback.frames if traceback else ():
        path = frame.file_name.replace("\\", "/")
        if "/jax/" in path or path.endswith("analysis/nonfinite.py"):
            continue
        short = "/".join(path.split("/")[-3:])
        return f"{short}:{frame.line_num} ({frame.function_name.rpartition('.')[2]})"
    return ""
