"""The flags of --job=sample that do not go together, and where a text ends."""

import json
import pathlib
from typing import Any

from jaxlm.core.config import ConfigError
from jaxlm.decode.grammars import Matcher, match_json_schema, match_regex
from jaxlm.jobs.sampling_flags import NUMBERS
from jaxlm.jobs.setup import check_choice
from jaxlm.jobs.sources import saved_usage
from jaxlm.tokenizers import Tokenizer

DRAWING = (*NUMBERS, "logit_bias", "seed")  # of which a search that draws nothing has no use

# Ways to write a text, one at a time; none: tokens drawn one by one.
MODES = ("beam_width", "draft", "draft_layers", "regex", "json_schema")


def check_flags(flags: Any) -> None:
    """Raises ConfigError for values out of range and for flags that do not go together."""
    check_choice(flags, "checkpoint", ("newest", "best"))
    for name in ("top_p", "min_p"):
        share = getattr(flags, name)
        if share is not None and not 0 < share <= 1:
            raise ConfigError(f"--{name}={share}: expected a number in (0, 1]")
    if not flags.prompt:
        raise ConfigError("--prompt=: expected at least one character to go on from")
    modes = [name for name in MODES if flags[name].present]
    if len(modes) > 1:
        raise ConfigError(f"--{modes[0]} and --{modes[1]}: one of the two at a time")
    if "beam_width" in modes:
        _refuse(flags, DRAWING, "a beam search draws nothing; leave it or --beam_width out")
        if flags.num_samples > flags.beam_width:
            raise ConfigError(
                f"--num_samples={flags.num_samples}: --beam_width={flags.beam_width} finds that "
                "many texts; raise it"
            )
    else:
        _refuse(flags, ("length_penalty",), "needs --beam_width")
    if not {"draft", "draft_layers"} & set(modes):
        _refuse(flags, ("draft_tokens",), "needs --draft or --draft_layers")


def matcher_of(flags: Any, tokenizer: Tokenizer) -> Matcher | None:
    """What the text must match, by --regex or --json_schema; None: nothing."""
    if flags.regex is not None:
        return match_regex(flags.regex, tokenizer)
    if flags.json_schema is None:
        return None
    try:
        text = pathlib.Path(flags.json_schema).read_text(encoding="utf-8")
        schema = json.loads(text)
    except OSError as error:
        raise ConfigError(f"--json_schema={flags.json_schema}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--json_schema={flags.json_schema}: {error}") from None
    return match_json_schema(schema, tokenizer)


def _refuse(flags: Any, names: tuple[str, ...], why: str) -> None:
    for name in names:
        if flags[name].present:
            raise ConfigError(f"{flags[name].serialize()}: {why}")


def stop_ids_of(stop: str | None, folder: pathlib.Path, tokenizer: Tokenizer) -> list[int]:
    """The token at which a text ends: that of --stop, else the one that an imported run names."""
    if stop is None:
        stop = str(saved_usage(folder).get("eos_token") or "none")
    if stop == "none":
        return []
    try:
        ids = tokenizer.encode(stop, allow_special=True)
    except ConfigError as error:
        raise ConfigError(f"--stop: {error}") from None
    if len(ids) != 1:
        raise ConfigError(f"--stop={stop}: is {len(ids)} tokens; expected a text that is one")
    return ids.tolist()
