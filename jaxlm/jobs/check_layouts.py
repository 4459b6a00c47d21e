"""--job=check_layouts: a config's step under every layout, on 8 devices, against one device.

The devices are forced: parts of this machine's processor. Loss, gradients and updated parameters
must be those of one device; arrays that several devices hold must be the same bytes on each. Also
listed are the collectives that each layout issues, as this machine's compiler chose them.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.analysis.hlo import Collective, collectives
from jaxlm.core import trees
from jaxlm.core.params import init_params
from jaxlm.data.batches import Batch
from jaxlm.jobs import Launch
from jaxlm.jobs.configs import launch_config
from jaxlm.jobs.devices import force_cpu_devices
from jaxlm.jobs.setup import backends_of, layout_of
from jaxlm.models import kinds
from jaxlm.models.kinds import AnyModelConfig
from jaxlm.optim.config import OptimConfig
from jaxlm.reports.tables import column_widths, print_row, print_table
from jaxlm.train.calls import with_frozen
from jaxlm.train.config import RunConfig
from jaxlm.train.layouts import MeshConfig
from jaxlm.train.program import hyper_values, place_program
from jaxlm.train.state import TrainState

NUM_DEVICES = 8
NUM_STEPS = 5
LOSS_TOLERANCE = 1e-6  # relative
TOLERANCE = 1e-5  # of parameters, absolute; of gradients, relative to the norm of each weight's

MESHES = {
    "one device": MeshConfig(data=1),
    "dp": MeshConfig(data=8, layout="dp"),
    "fsdp": MeshConfig(data=2, fsdp=4, layout="fsdp"),
    "fsdp_tp": MeshConfig(data=2, fsdp=2, tensor=2, layout="fsdp_tp"),
    "zero1": MeshConfig(data=8, layout="zero1"),
    "pmap": MeshConfig(data=8, layout="dp"),
}

# SGD with momentum: what it does to the parameters is as exact as the gradients are. AdamW divides
# by their size, so that rounding moves a weight whose gradient is almost zero by a whole step.
SGD = OptimConfig(
    name="sgd", peak_lr=0.1, momentum=0.9, weight_decay=0.0, schedule="constant", warmup_steps=0
)


def main(launch: Launch) -> int:
    force_cpu_devices(NUM_DEVICES)
    cfg, name = launch_config(launch)
    cfg = checked_config(cfg, launch.flags.shrink)
    model = cfg.model
    print(
        f"{name}: {model.summary}, {cfg.data.batch_size} x {model.context_length} random tokens "
        f"of {model.vocab_size} ids, float32, no dropout; {NUM_STEPS} steps",
        flush=True,
    )
    differ = report(cfg)
    print(f"\n{'DIFFERENT: ' + ', '.join(differ) if differ else 'all layouts agree'}")
    return 1 if differ else 0


def checked_config(cfg: RunConfig, shrink: bool) -> RunConfig:
    """`cfg` as it is checked: in float32, without dropout, of a size that 8 devices can split.

    shrink: a small model and batch of the same kind.
    """
    model, rows = cfg.model, cfg.data.batch_size // cfg.train.num_microbatches
    vocab_size = model.vocab_size or 256
    if shrink:
        model = smaller(model)
        rows, vocab_size = min(rows, NUM_DEVICES), min(vocab_size, 64)
    rows += -rows % NUM_DEVICES
    exact = _having(model, {"dtype": "float32", "dropout": 0.0})
    return dataclasses.replace(
        cfg,
        model=dataclasses.replace(model, vocab_size=vocab_size + vocab_size % 2, **exact),
        data=dataclasses.replace(cfg.data, batch_size=rows * cfg.train.num_microbatches),
        train=dataclasses.replace(cfg.train, parallel="jit"),
    )


def smaller(model: AnyModelConfig) -> AnyModelConfig:
    """A small model of the same kind, its heads grouped as before."""
    was = dataclasses.asdict(model)
    heads, groups, window = (was.get(n) for n in ("num_heads", "num_kv_heads", "window"))
    sizes = {
        "num_layers": min(was.get("num_layers", 1), 3),
        "d_model": 32,
        "num_heads": 4,
        "num_kv_heads": 1 if groups == 1 else 2 if groups not in (None, heads) else None,
        "head_dim": None,
        "d_ff": None,
        "context_length": min(model.context_length, 32),
        "window": window and min(window, 8),
    }
    return dataclasses.replace(model, **_having(model, sizes))


def _having(model: AnyModelConfig, values: dict[str, Any]) -> dict[str, Any]:
    """Those of the values for which the model's config has a field."""
    names = {field.name for field in dataclasses.fields(model)}
    return {name: value for name, value in values.items() if name in names}


class Trained(NamedTuple):
    """What a layout came to.

    losses: f64[steps]. gradients: {path: of the first step, clipped}. params: {path: of the last}.
    unequal: paths of arrays that are not the same on all devices that hold them.
    """

    losses: np.ndarray
    gradients: dict[str, np.ndarray]
    params: dict[str, np.ndarray]
    unequal: list[str]
    collectives: dict[str, Collective]


class Difference(NamedTuple):
    """Of two `Trained`: losses relative, gradients relative to their norm, parameters absolute."""

    loss: float
    gradient: float
    params: float

    @property
    def is_rounding(self) -> bool:
        limits = (LOSS_TOLERANCE, TOLERANCE, TOLERANCE)
        return all(value <= limit for value, limit in zip(self, limits, strict=True))


def report(cfg: RunConfig) -> list[str]:
    """Prints the tables, each layout as it is done; returns those that differ from one device."""
    own = cfg.optim.name
    placed, impossible = {}, {}
    for name, mesh in MESHES.items():
        parallel = "pmap" if name == "pmap" else "jit"
        try:
            here = dataclasses.replace(
                cfg,
                mesh=dataclasses.replace(mesh, whole=cfg.mesh.whole),
                train=dataclasses.replace(cfg.train, parallel=parallel),
            )
            placed[name] = here, layout_of(here, kinds.param_specs(cfg.model)).description
        except ValueError as error:  # of the config itself, or a ConfigError
            impossible[name] = f"{name}: {error}"
    heading = ["layout", "devices", "loss", "gradients", "parameters", f"with {own}", ""]
    numbers = [f"{0:.1e}"] * 4
    rows = [[name, placed[name][1] if name in placed else "", *numbers, ""] for name in MESHES]
    widths = column_widths([heading, *rows])
    issued = [["collectives a step", "kind", "number", "MB"]]
    differ, wanted = [], {}
    print()
    print_row(heading, widths, left=True)
    for name in MESHES:
        if name in impossible:
            print_row([name, "", "", "", "", "", "not possible"], widths, left=True)
            continue
        here, devices = placed[name]
        optims = {own: cfg.optim, SGD.name: SGD}
        got = {name: train(here, optim) for name, optim in optims.items()}
        wanted = wanted or got
        exact, reported = (difference(got[n], wanted[n]) for n in (SGD.name, own))
        unequal = got[SGD.name].unequal
        agrees = exact.is_rounding and not unequal
        if not agrees:
            differ.append(name)
        what = "ok" if agrees else "DIFFERENT"
        what += f", not the same on all devices: {', '.join(unequal[:3])}" if unequal else ""
        numbers = [f"{x:.1e}" for x in (*exact, reported.params)]
        print_row([name, devices, *numbers, what], widths, left=True)
        for kind, (count, num_bytes) in got[SGD.name].collectives.items():
            issued.append([name, kind, f"{count:,}", f"{num_bytes / 1e6:.2f}"])
    for line in impossible.values():
        print(line)
    print()
    print_table(issued, left=True)
    return differ


def train(cfg: RunConfig, optim: OptimConfig) -> Trained:
    """`NUM_STEPS` steps from the beginning, one to a call, on the devices that `cfg` says."""
    cfg = dataclasses.replace(cfg, optim=dataclasses.replace(optim, clip_norm=cfg.optim.clip_norm))
    specs = kinds.param_specs(cfg.model)
    layout = layout_of(cfg, specs)
    token_bytes = np.ones(cfg.model.vocab_size or 0, np.int32)
    program = place_program(cfg, token_bytes, layout, hyper_values(cfg), **backends_of(cfg).options)
    state, losses, gradients = program.init(), [], {}
    if cfg.lora.rank is not None:
        where = jax.tree.map(lambda leaf: leaf.sharding, program.state.frozen)
        base = jax.jit(lambda: init_params(jax.random.key(1), specs), out_shardings=where)()
        state = state.replace(frozen=base)
    compiled = program.lower(random_batch(cfg, 0)).compile()
    run = with_frozen(compiled)
    for step in range(NUM_STEPS):
        state, metrics = run(state, program.arrange(random_batch(cfg, step)))
        losses.append(metrics["loss"].compute()[0])
        if step == 0:  # SGD's momentum is then the gradient
            gradients = named_leaves(state.opt_state)
    return Trained(
        np.array(losses, np.float64),
        gradients,
        trees.flatten(jax.device_get(state.params)),
        unequal_replicas(state),
        collectives(compiled.as_text()),
    )


def random_batch(cfg: RunConfig, step: int) -> Batch:
    """[1, B, S] random tokens, of which some targets do not count: unequal weights a device."""
    rng = np.random.default_rng(step)
    shape = (1, cfg.data.batch_size, cfg.model.context_length)
    tokens, targets = rng.integers(cfg.model.vocab_size or 0, size=(2, *shape)).astype(np.int32)
    middle = np.full(shape, 1, np.int32)
    middle[..., shape[-1] // 2 :] = 2
    return Batch(
        tokens=tokens,
        targets=targets,
        weights=(rng.random(shape) < rng.random((*shape[:2], 1))).astype(np.float32),
        segment_ids=middle if cfg.data.mask_documents else None,
    )


def named_leaves(tree: Any) -> dict[str, np.ndarray]:
    """{path: array} of all leaves that are not scalars."""
    return {
        jax.tree_util.keystr(path, simple=True, separator=trees.SEPARATOR): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if np.ndim(leaf)
    }


def difference(got: Trained, wanted: Trained) -> Difference:
    """How far `got` is from `wanted`; infinite where one of them is not finite."""
    pairs = [(got.gradients[path], want) for path, want in wanted.gradients.items()]
    gradient = [np.linalg.norm(g - w) / max(np.linalg.norm(w), 1e-30) for g, w in pairs]
    params = [np.abs(got.params[path] - want).max() for path, want in wanted.params.items()]
    return Difference(
        *(
            float(np.nan_to_num(np.max(values), nan=np.inf))
            for values in (np.abs(got.losses / wanted.losses - 1), gradient, params)
        )
    )


def unequal_replicas(state: TrainState) -> list[str]:
    """Paths of the arrays of which some part is on several devices and not the same on each."""
    unequal = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        array = leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            array = jax.random.key_data(leaf)
        parts: dict[str, set[bytes]] = {}
        for shard in array.addressable_shards:
            parts.setdefault(str(shard.index), set()).add(np.asarray(shard.data).tobytes())
        if any(len(contents) > 1 for contents in parts.values()):
            unequal.append(jax.tree_util.keystr(path, simple=True, separator=trees.SEPARATOR))
    return unequal
