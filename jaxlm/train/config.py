"""The config of one run, composed of the configs that its parts own."""

import dataclasses
from typing import Literal

from jaxlm.core.config import check_choices, check_numbers
from jaxlm.data.config import DataConfig
from jaxlm.models import backends
from jaxlm.models.kinds import AnyModelConfig
from jaxlm.models.lora import LoraConfig
from jaxlm.models.transformer import TransformerConfig
from jaxlm.objectives.next_token import LossConfig
from jaxlm.optim.config import OptimConfig
from jaxlm.tokenizers.config import TokenizerConfig
from jaxlm.train.layouts import MeshConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long to train and what to do on the way. Steps count optimizer updates, from 1."""

    num_steps: int = 1000
    steps_per_call: int = 10  # steps inside one compiled call; the other counts are multiples of it
    num_microbatches: int = 1  # parts that a batch is cut into, to save memory
    parallel: Literal["jit", "pmap"] = "jit"  # how a step runs on several devices
    attention: backends.Name = "auto"
    vocab_chunk: int | None = None  # ids whose logits are held at once; none: all
    log_every: int = 10
    eval_every: int = 100
    eval_batches: int | None = None  # validation batches; none: the full split
    save_every: int = 100
    keep_last: int = 2  # newest checkpoints kept
    keep_best: int = 1  # checkpoints of lowest validation loss kept
    sample_every: int | None = None  # none: samples at the end only
    sample_prompt: str | None = None  # none: the first token of the validation text
    sample_tokens: int = 300  # 0: no samples
    sample_temperatures: tuple[float, ...] = (0.8,)
    # A step whose loss or gradient is not finite: end the run, let it change nothing, or go back
    # `rollback_steps` or more, to the edge of a call, and pass over the batches of those steps.
    on_nonfinite: Literal["stop", "skip", "rollback"] = "stop"
    rollback_steps: int = 10
    max_passed_over: int = 100  # batches; a rollback that would pass over more ends the run
    spike_sigmas: float | None = None  # the same for a loss that far above its mean; none: no limit
    init_from: str | None = None  # weights to start from: a workdir, a Hugging Face folder, a GGUF
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()  # each an extra of that name
    profile_steps: str | None = None  # trace the steps after the first of 10:20, to the second

    def __post_init__(self):
        check_choices(self)
        positive = ("num_steps", "steps_per_call", "num_microbatches", "log_every", "eval_every")
        for name in (
            *positive,
            "save_every",
            "eval_batches",
            "sample_every",
            "keep_last",
            "vocab_chunk",
            "rollback_steps",
            "max_passed_over",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if self.spike_sigmas is not None and self.spike_sigmas <= 0:
            raise ValueError(f"spike_sigmas={self.spike_sigmas} must be greater than 0")
        for name in ("keep_best", "sample_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if any(t < 0 for t in self.sample_temperatures):
            raise ValueError(f"sample_temperatures={self.sample_temperatures} must not be negative")
        if len(set(self.trackers)) < len(self.trackers):
            raise ValueError(f"trackers={','.join(self.trackers)} names one twice")
        if self.sample_prompt == "":
            raise ValueError("sample_prompt must hold at least one character, or be none")
        for name in ("num_steps", "eval_every", "save_every", "sample_every"):
            value = getattr(self, name)
            if value is not None and value % self.steps_per_call:
                raise ValueError(
                    f"{name}={value} must be a multiple of steps_per_call={self.steps_per_call}"
                )
        profiled_steps(self)


def profiled_steps(cfg: TrainConfig) -> tuple[int, int] | None:
    """(first, last): the steps first + 1 to last are traced.

    Raises:
      ValueError: profile_steps is no such pair.
    """
    if cfg.profile_steps is None:
        return None
    steps, per_call = f"profile_steps={cfg.profile_steps}", cfg.steps_per_call
    first, colon, last = cfg.profile_steps.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise ValueError(f"{steps} must be two steps, the later one behind a colon, such as 10:20")
    if int(first) >= cfg.num_steps:
        raise ValueError(f"{steps}: the run ends before, at num_steps={cfg.num_steps}")
    if int(first) % per_call or int(last) % per_call:
        raise ValueError(f"{steps}: both must be multiples of steps_per_call={per_call}")
    return int(first), int(last)


# What may change when a run is resumed: none of it alters a step that is already done.
FREE_ON_RESUME = frozenset(
    ["model.remat", *(f"mesh.{f.name}" for f in dataclasses.fields(MeshConfig))]
) | frozenset(
    f"train.{name}"
    for name in (
        "parallel",
        "num_microbatches",
        "vocab_chunk",
        "num_steps",
        "log_every",
        "eval_every",
        "eval_batches",
        "save_every",
        "keep_last",
        "keep_best",
        "sample_every",
        "sample_prompt",
        "sample_tokens",
        "sample_temperatures",
        "on_nonfinite",
        "rollback_steps",
        "max_passed_over",
        "trackers",
        "profile_steps",
    )
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything a run is a function of, but for the text itself."""

    model: AnyModelConfig = TransformerConfig()
    lora: LoraConfig = LoraConfig()  # adapters on the weights of train.init_from
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()
    seed: int = 0

    def __post_init__(self):
        check_numbers(self)
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed={self.seed} must be in [0, 2^31)")
        if self.data.batch_size % self.train.num_microbatches:
            raise ValueError(
                f"data.batch_size={self.data.batch_size} must be a multiple of "
                f"train.num_microbatches={self.train.num_microbatches}"
            )
        splits = self.mesh.fsdp * self.mesh.tensor > 1 or self.mesh.layout == "zero1"
        if self.train.parallel == "pmap" and splits:
            raise ValueError(
                "train.parallel=pmap splits nothing but the batch, over mesh.data: leave the rest "
                "of mesh as it is, or set train.parallel=jit"
            )
        if not self.model.causal:
            raise ValueError("model.causal=false: next-token training needs a causal model")
        if self.model.carries is not None:
            self._check_carried(self.model.carries)

    def _check_carried(self, what: str) -> None:
        if self.train.num_microbatches > 1:
            raise ValueError(
                f"train.num_microbatches={self.train.num_microbatches}: the model hands its {what} "
                "on from batch to batch, so a batch cannot be cut in parts; set it to 1"
            )
        if self.train.parallel == "pmap":
            raise ValueError(
                f"train.parallel=pmap: each device would have its own {what}; set it to jit"
            )
        if what == "recurrent state" and self.data.order != "contiguous":
            raise ValueError(
                "model.carry_state=true: the rows of a batch must go on from those of the one "
                "before; set data.order=contiguous"
            )
