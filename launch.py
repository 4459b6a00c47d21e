"""The one command: python launch.py [--job=train] [--config=FILE] [--config.FIELD=VALUE] ...

  python launch.py                                        train on the bundled plays
  python launch.py --config.data.path=FILE                train on your own text
  python launch.py --job=sample --workdir=runs/a --prompt="ROMEO:"
  python launch.py --job=chat --workdir=runs/a --system="Be brief."
  python launch.py --job=explain --workdir=runs/a --prompt="To be, or not to be"
  python launch.py --job=evaluate --workdir=runs/a
  python launch.py --job=tokenizer --config.tokenizer.vocab_size=8192 --config.data.path=FILE
  python launch.py --job=fields                           every setting, and what it does
  python launch.py --job=compare --runs=runs/a,runs/b     side by side; with --workdir a page of it
  python launch.py --job=prove_causal --config=FILE       that no prediction sees its own target
  python launch.py --job=verify_resume --config=FILE      that a killed run ends as an unbroken one
  python launch.py --config=runs/a/config.json --workdir=runs/b   repeat run a
  python launch.py --job=import --source=MODEL --workdir=runs/a   a Hugging Face folder or a GGUF
  python launch.py --job=export --workdir=runs/a --target=FOLDER  a Hugging Face folder
  python launch.py --experiment=copy_task                 a study: question, claims, figures
  python launch.py --sweep=configs/sweeps/lr_by_seed.py   many runs, one program a structure

Every field of a config can be set on the command line, such as --config.model.num_layers=8; a
name that does not exist is answered with the nearest one. Without --workdir a run gets a new
folder, runs/<config>-NNN. A workdir that holds a run is gone on with.
"""

import os
import pathlib
import signal
import sys

from absl import app, flags, logging

from jaxlm import jobs
from jaxlm.core.config import FLAG, ConfigError, nearest

ROOT = pathlib.Path(__file__).parent

_JOBS = "\n".join(f"{name}: {does}" for name, does in jobs.JOBS.items())
_FLAGS = [
    flags.DEFINE_string("job", "train", f"What to do. {_JOBS}"),
    flags.DEFINE_string("config", None, "A .py file with get_config(), or a run's config.json."),
    flags.DEFINE_string("experiment", None, "Run a study, by its name in experiments/; or all."),
    flags.DEFINE_string("sweep", None, "Train all runs of a .py file with get_sweep()."),
    flags.DEFINE_integer("sweep_index", None, "sweep: only this run, from 0.", lower_bound=0),
    flags.DEFINE_string("workdir", None, "The folder of the run; compare: of compare.html."),
    flags.DEFINE_string("checkpoint", "newest", "newest or best."),
    flags.DEFINE_string("topology", "local", "For what: local, or a slice as v5e:4x4."),
    flags.DEFINE_bool("plan", False, "Find micro-batch, remat and mesh."),
    flags.DEFINE_bool("shrink", False, "A small model of the same kind."),
    flags.DEFINE_list("runs", [], "The folders of runs, joined by commas."),
    flags.DEFINE_string(
        "coordinator", None, "In several processes: HOST:PORT of process 0, or auto."
    ),
    flags.DEFINE_integer("num_processes", None, "How many there are.", lower_bound=1),
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", lower_bound=0),
    flags.DEFINE_string(
        "launcher", None, "slurm: as a job of the cluster; local: of this machine."
    ),
    flags.DEFINE_string("partition", None, "Where SLURM is to run it."),
    flags.DEFINE_integer("minutes", 60, "Of a job; it goes on in another.", lower_bound=5),
    flags.DEFINE_integer("gpus", None, "Of a node.", lower_bound=0),
    flags.DEFINE_integer("cpus", None, "Cores of a node.", lower_bound=1),
    flags.DEFINE_integer("nodes", 1, "With a process on each.", lower_bound=1),
    flags.DEFINE_bool("array", False, "Each run of a sweep in a job of its own."),
    flags.DEFINE_string("output", "text", "text or json."),
    flags.DEFINE_string("source", None, "A Hugging Face or PEFT folder, or a GGUF file."),
    flags.DEFINE_string("target", None, "The folder to make, or the page of explain."),
    flags.DEFINE_string("format", "safetensors", "safetensors, or peft: adapters alone."),
    flags.DEFINE_string("prompt", "\n", "The text to go on from, or to look at."),
    flags.DEFINE_string("system", None, "What the model is told first."),
    flags.DEFINE_integer(
        "context",
        None,
        "Tokens the model looks back on; by default all it can.",
        lower_bound=4,
    ),
    flags.DEFINE_integer(
        "num_tokens",
        300,
        "How many tokens to write; of chat, at most.",
        lower_bound=1,
        upper_bound=2**20,
    ),
    flags.DEFINE_integer("num_samples", 1, "How many texts.", lower_bound=1, upper_bound=2**12),
    flags.DEFINE_float(
        "temperature", 0.8, "0 takes the likeliest token.", lower_bound=0, upper_bound=1e6
    ),
    flags.DEFINE_integer("top_k", None, "Only the k likeliest tokens.", lower_bound=1),
    flags.DEFINE_float("top_p", None, "Only the likeliest with this joint probability."),
    flags.DEFINE_float("min_p", None, "Only tokens this likely beside the likeliest."),
    flags.DEFINE_float("repetition_penalty", None, "Above 1 shuns what the text holds."),
    flags.DEFINE_list("logit_bias", [], "ID:BIAS,..., added to logits; -inf forbids."),
    flags.DEFINE_string("stop", None, "What ends a text, or none; an import has its own."),
    flags.DEFINE_integer(
        "beam_width", None, "Search for the likeliest text, this wide.", lower_bound=1
    ),
    flags.DEFINE_float("length_penalty", 1.0, "Of a beam: score = log-probability / length^this."),
    flags.DEFINE_string("draft", None, "A run or files whose model proposes tokens."),
    flags.DEFINE_integer(
        "draft_layers", None, "The model's own first layers propose.", lower_bound=1
    ),
    flags.DEFINE_integer(
        "draft_tokens", 4, "A draft proposes so many at a time.", lower_bound=1, upper_bound=64
    ),
    flags.DEFINE_string("regex", None, "Only texts that match this from end to end."),
    flags.DEFINE_string("json_schema", None, "Only JSON that this file's schema accepts."),
    flags.DEFINE_integer(
        "seed",
        0,
        "Of the random draws; of verify_resume, of the moments.",
        lower_bound=0,
        upper_bound=2**31 - 1,
    ),
    flags.DEFINE_integer("kills", 20, "How often a run is killed.", lower_bound=1),
    flags.DEFINE_integer("steps", 96, "How many steps a run has.", lower_bound=8),
]
for _name, _readers in jobs.READ_BY.items():
    _by = ", ".join("launcher" if reader == "submit" else reader for reader in _readers)
    flags.FLAGS[_name].help = f"{_by}: {flags.FLAGS[_name].help}"


def parse(argv: list[str]) -> dict[str, str]:
    """Reads the flags; returns the overrides {"model.num_layers": "8"} of --config.FIELD=VALUE."""
    overrides, rest, names = {}, [argv[0]], set()
    for arg in argv[1:]:
        try:
            arg.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{arg!a}: not UTF-8") from None
        if arg.startswith(FLAG):
            path, given, value = arg.removeprefix(FLAG).partition("=")
            if not given:
                raise ConfigError(f"{arg}: expected {FLAG}FIELD=VALUE")
            if path in overrides:
                raise ConfigError(f"{FLAG}{path}: given twice")
            overrides[path] = value
        else:
            arg = "--help" if arg == "-h" else arg
            name = arg.partition("=")[0]
            if name.startswith("--") and name in names:
                raise ConfigError(f"{name}: given twice")
            names.add(name)
            rest.append(arg)
    try:
        unused = flags.FLAGS(rest)[1:]
    except SystemExit:  # --help was answered; absl counts that as an error
        sys.exit(0)
    except flags.UnrecognizedFlagError as error:
        near = jobs.field_meant(error.flagname)
        near = near or nearest(error.flagname, [flag.name for flag in _FLAGS])
        raise ConfigError(f"--{error.flagname}: no such flag{near}; see --help") from None
    except flags.Error as error:
        raise ConfigError(" ".join(str(error).split())) from None
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # what libraries log of their work is not the run's
    if unused:
        raise ConfigError(f"{unused[0]}: expected only flags, such as --config={unused[0]}")
    return overrides


def main(overrides: dict[str, str]) -> int:
    args = flags.FLAGS
    if args.job not in jobs.JOBS:
        known = ", ".join(jobs.JOBS)
        near = nearest(args.job, list(jobs.JOBS))
        raise ConfigError(f"--job={args.job}: no such job{near} (jobs: {known})")
    for name in ("config", "workdir", "experiment", "sweep", "launcher", "source", "target"):
        if args[name].value == "":
            raise ConfigError(f"--{name}=: expected a value; leave the flag out for the default")
    default = str(ROOT / "configs" / "plays.py")
    launch = jobs.Launch(args.config, overrides, args.workdir, default, args)
    job = job_of(args)
    jobs.check_flags(args, job)
    if args.launcher is not None and job not in ("train", "study", "sweep"):
        raise ConfigError(f"--launcher={args.launcher}: --job={job} runs at once, without one")
    return jobs.run("submit" if args.launcher is not None else job, launch)


def job_of(args: flags.FlagValues) -> str:
    """--job, or what --experiment or --sweep says instead."""
    given = [name for name in ("experiment", "sweep") if args[name].value is not None]
    if args["job"].present:
        given.insert(0, "job")
    if len(given) > 1:
        raise ConfigError(f"--{given[0]} and --{given[1]}: give one of the two")
    if args.sweep_index is not None and args.sweep is None:
        raise ConfigError(f"--sweep_index={args.sweep_index}: of which sweep? give --sweep")
    return str(jobs.BY_FLAG.get(given[0], args.job) if given else args.job)


def guarded(step, *args):
    """`step(*args)`; what the user can put right is one line and exit code 2."""
    try:
        return step(*args)
    except ConfigError as error:
        print(f"launch.py: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # whoever read the output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(128 + signal.SIGPIPE)
        if error.filename is None:
            raise
        print(f"launch.py: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # before or after training, which has a handler of its own
        print("launch.py: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    app.run(
        lambda overrides: guarded(main, overrides), flags_parser=lambda argv: guarded(parse, argv)
    )
