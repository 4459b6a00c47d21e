"""Copies of a run's metrics and samples for TensorBoard and Weights & Biases.

The run's own logs are the record; a tracker is a convenience beside them. It is given the same
dicts that go into metrics.jsonl and samples.jsonl, changes nothing of them, and where it fails
training goes on without it. Their packages are imported only where a config names them.
"""

import importlib
import os
import pathlib
import secrets
import time
from collections.abc import Callable, Iterable
from typing import Any

from jaxlm.core.config import FLAG, ConfigError

TENSORBOARD_FOLDER = "tensorboard"
WANDB_ID_FILE = "wandb_id.txt"


class Trackers:
    """The trackers of a run, open; a context manager.

    Args:
      names: of "tensorboard" and "wandb".
      folder: the run's folder, in which both keep their files.
      config: the run's config, shown beside the metrics.
      start: the step that the run goes on from.
      history: what the logs hold already, in order. A tracker of a run that it has seen before is
        sent the records from `start` on again, a new one all of them.
      note: told in one line when a tracker fails; that tracker is left alone from then on.
    """

    def __init__(
        self,
        names: Iterable[str],
        folder: pathlib.Path,
        config: dict[str, Any],
        start: int,
        history: Iterable[dict[str, Any]],
        note: Callable[[str], None],
    ):
        self._note = note
        self._open: dict[str, Any] = {}
        for name in names:
            tracker = self._guarded(name, _TRACKERS[name], folder, config, start)
            if tracker is not None:
                self._open[name] = tracker
        for record in history:
            for name, tracker in list(self._open.items()):
                if record["step"] >= tracker.since:
                    self._guarded(name, tracker.send, record)

    def send(self, record: dict[str, Any]) -> None:
        """Passes on a line of metrics.jsonl or of samples.jsonl."""
        for name, tracker in list(self._open.items()):
            self._guarded(name, tracker.send, record)

    def close(self) -> None:
        for name, tracker in list(self._open.items()):
            self._guarded(name, tracker.close)
        self._open.clear()

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def _guarded(self, name: str, call: Callable, *args: Any) -> Any:
        try:
            return call(*args)
        except Exception as error:  # whatever it is: training does not end for it
            self._open.pop(name, None)
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            self._note(f"{name} failed, the run goes on without it: {reason}")
            return None


def require(names: Iterable[str]) -> None:
    """Raises ConfigError unless the package of each tracker named is installed."""
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"{FLAG}train.trackers={name}: needs the package {name} ({error}); "
                f"pip install -e '.[{name}]'"
            ) from None


def scalars(record: dict[str, Any]) -> dict[str, float]:
    """{"train/loss": 1.9, ...} of a line of metrics.jsonl: its numbers, but for the step."""
    return {
        f"{record['split']}/{name}": float(value)
        for name, value in record.items()
        if name != "step" and not isinstance(value, bool) and isinstance(value, int | float)
    }


class _TensorBoard:
    """Event files in `<run>/tensorboard`, for `tensorboard --logdir=runs`.

    Written here and now, where a failure can be seen: the writers of the usual packages hand events
    to a thread, and wait for ever when it has died of a full disk.
    """

    def __init__(self, folder: pathlib.Path, config: dict[str, Any], start: int):
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder = folder / TENSORBOARD_FOLDER
        self.since = start if any(folder.glob("*tfevents*")) else 0
        folder.mkdir(exist_ok=True)
        # Readers take the files of a folder in the order of their names.
        name = f"events.out.tfevents.{time.time():017.6f}.{os.getpid()}"
        self._writer = RecordWriter(open(folder / name, "xb"))  # noqa: SIM115
        self._event = event_pb2.Event
        self._write(file_version="brain.Event:2")
        # Readers drop the events of this step and later ones that a killed process left.
        restart = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(step=self.since, session_log=restart)

    def send(self, record: dict[str, Any]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.types_pb2 import DT_STRING

        if "text" in record:
            # Shown as Markdown: an indented block keeps spaces and line breaks.
            text = "".join(f"    {line}\n" for line in _sample(record).split("\n"))
            plugin = SummaryMetadata.PluginData(plugin_name="text")
            value = Summary.Value(
                tag=_sample_name(record),
                metadata=SummaryMetadata(plugin_data=plugin),
                tensor=TensorProto(dtype=DT_STRING, string_val=[text.encode()]),
            )
            values = [value]
        else:
            values = [Summary.Value(tag=t, simple_value=v) for t, v in scalars(record).items()]
        self._write(step=record["step"], summary=Summary(value=values))

    def close(self) -> None:
        self._writer.close()

    def _write(self, **content: Any) -> None:
        event = self._event(wall_time=time.time(), **content)
        self._writer.write(event.SerializeToString())
        self._writer.flush()


class _Wandb:
    """A run of Weights & Biases; its files are in `<run>/wandb`.

    It is sent nowhere, until `wandb sync`, unless the user has logged in or has set WANDB_MODE.
    """

    def __init__(self, folder: pathlib.Path, config: dict[str, Any], start: int):
        import wandb

        self._wandb = wandb
        id_file = folder / WANDB_ID_FILE
        self.since = start if id_file.exists() else 0
        if not id_file.exists():
            id_file.write_text(secrets.token_hex(4))
        chosen: dict[str, Any] = {}  # what is given here would win over the user's own settings
        if "WANDB_PROJECT" not in os.environ:
            chosen["project"] = "jaxlm"
        if "WANDB_MODE" not in os.environ and not wandb.login(prompt=False, verify=False):
            chosen["mode"] = "offline"
        self._run = wandb.init(
            id=id_file.read_text().strip(),
            resume="allow",
            name=folder.absolute().name,
            dir=str(folder),
            config=config,
            settings=wandb.Settings(console="off"),  # the terminal belongs to the progress display
            **chosen,
        )

    def send(self, record: dict[str, Any]) -> None:
        step = record["step"]
        if step < self._run.step:  # it has this step of a run that was killed later
            return
        if "text" in record:
            names = ("step", "temperature", "text")
            row = [step, record["temperature"], _sample(record)]
            values = {_sample_name(record): self._wandb.Table(columns=list(names), data=[row])}
        else:
            values = scalars(record)
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


def _sample(record: dict[str, Any]) -> str:
    return f"{record['prompt']}{record['text']}"


def _sample_name(record: dict[str, Any]) -> str:
    return f"samples/temperature_{record['temperature']:g}"


_TRACKERS = {"tensorboard": _TensorBoard, "wandb": _Wandb}
