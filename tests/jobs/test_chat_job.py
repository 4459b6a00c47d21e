"""--job=chat: through a pipe, on a terminal, and what it keeps of a conversation."""

import datetime
import json
import os
import pty
import select
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from job_runs import LAUNCH, TIMEOUT_S

from jaxlm.core import trees
from jaxlm.decode import stream
from jaxlm.interop import pretrained
from jaxlm.jobs import chat
from jaxlm.jobs.chat import Chat, pieces_until_stop
from jaxlm.jobs.setup import open_run
from jaxlm.models.transformer import TransformerConfig, param_specs
from jaxlm.tokenizers import bpe_tokenizer
from jaxlm.tokenizers.chat import ASSISTANT, SYSTEM, USER, ChatFormat, chat_format
from jaxlm.tokenizers.hugging_face import write_tokenizer

pytest.importorskip("jinja2")

TEMPLATE = """{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"""
TEMPLATE += "{% if add_generation_prompt %}<|assistant|>{% endif %}"
SPECIALS = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
USAGE = {"eos_token": "<|end|>", "chat_template": TEMPLATE}
CONTEXT = 96


@pytest.fixture(scope="module")
def talker(launch, tmp_path_factory):
    """A run imported from a folder of a random model of 1 layer, whose vocabulary is bytes."""
    folder = tmp_path_factory.mktemp("talker")
    tokenizer = bpe_tokenizer([(b"t", b"h")], pattern="gpt2", special_tokens=SPECIALS)
    cfg = TransformerConfig(
        vocab_size=tokenizer.vocab_size,
        context_length=CONTEXT,
        num_layers=1,
        d_model=16,
        num_heads=2,
        rope_layout="half",
    )
    rng = np.random.default_rng(0)

    def draw(path, spec):
        return np.float32(rng.normal("norm" in path, 0.6, spec.shape))

    source = folder / "source"
    source.mkdir()
    pretrained.save_weights(source, cfg, trees.map_with_path(draw, param_specs(cfg)))
    write_tokenizer(source, tokenizer, USAGE)
    outcome = launch("--job=import", f"--source={source}", f"--workdir={folder / 'run'}")
    assert outcome.code == 0, outcome.err
    return folder / "run"


@pytest.fixture(scope="module")
def run(talker):
    return open_run(talker)


def make_chat(run, context=CONTEXT, num_tokens=12, **changes):
    format = chat_format(run.tokenizer, USAGE, datetime.datetime.now().strftime)
    sampling = {"temperature": changes.pop("temperature", 1.0)}
    options = {"seed": 0, "system": None} | changes
    return Chat(run, format, context, sampling, num_tokens, **options)


def talk(launch, *args, said):
    """The real command with `said` on its standard input."""
    return subprocess.run(
        [sys.executable, LAUNCH, "--job=chat", *args],
        input=said,
        cwd=launch.cwd,
        env=launch.env,
        capture_output=True,
        timeout=TIMEOUT_S,
    )


def test_through_a_pipe_each_line_is_answered(launch, talker):
    said = b"hello\n\n/reset\nhello\nand now? <|end|>\n/rest\n/quit\nnever read\n"
    outcome = talk(launch, f"--workdir={talker}", "--num_tokens=6", "--temperature=0", said=said)
    assert outcome.returncode == 0, outcome.stderr
    told = outcome.stderr.decode().splitlines()
    assert told[0].endswith(f"a context of {CONTEXT} tokens, its own chat template")
    assert sum("first token after" in line and "tokens/s" in line for line in told) == 3
    assert "a new conversation" in told
    assert [line for line in told if line.startswith("/rest: no such command; /reset begins anew")]
    assert "\ufffd" not in told
    answers = outcome.stdout.decode()  # UTF-8 through and through
    first = answers[: answers.index("\n", 1)]
    assert answers.count(first) >= 2


def test_a_message_that_cannot_be_read_is_one_line_and_no_end(launch, talker):
    said = b"x" * 95 + b"\nhello\n"
    outcome = talk(launch, f"--workdir={talker}", "--num_tokens=3", said=said)
    assert outcome.returncode == 0, outcome.stderr
    assert b"this message takes 98 tokens" in outcome.stderr
    assert outcome.stderr.count(b"first token after") == 1


AGAIN_S = 30

# In the new process: Python of many threads must not run code between fork and exec.
TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """Our end of a terminal in which the command runs."""

    def __init__(self, fd):
        self.fd, self.shown = fd, b""

    def wait_for(self, wanted, again=b""):
        """Takes what is shown up to there, and gives it; types `again` where that takes long."""
        end = time.monotonic() + TIMEOUT_S
        while wanted not in self.shown:
            left = max(0, end - time.monotonic())
            ready, _, _ = select.select([self.fd], [], [], min(AGAIN_S, left) if again else left)
            assert ready or (again and left), self.shown
            if ready:
                self.shown += os.read(self.fd, 4096)
            else:
                self.type(again)
        before, _, self.shown = self.shown.partition(wanted)
        return before

    def type(self, text):
        os.write(self.fd, text)


def test_on_a_terminal_ctrl_c_stops_the_answer_and_not_the_chat(launch, talker):
    ours, theirs = pty.openpty()
    terminal = Terminal(ours)
    # The answer would end by itself at one of these.
    never = ",".join(f"{256 + 1 + place}:-inf" for place in range(len(SPECIALS)))
    args = ["--job=chat", f"--workdir={talker}", "--num_tokens=1000000", "--context=65536"]
    args += [f"--logit_bias={never}"]
    with subprocess.Popen(
        [sys.executable, "-c", TAKE_TERMINAL, sys.executable, LAUNCH, *args],
        **dict.fromkeys(("stdin", "stdout", "stderr"), theirs),
        cwd=launch.cwd,
        env=launch.env | {"TERM": "dumb"},
        start_new_session=True,
    ) as process:
        os.close(theirs)
        try:
            terminal.wait_for(b"> ")
            # At the prompt it ends nothing. Python's `input` shows the prompt and then waits for a
            # key: a signal between the two is only seen with the next one.
            terminal.type(b"\x03")
            terminal.wait_for(b"stops an answer", again=b"\x03")
            for said in (b"hello", b"again"):
                terminal.wait_for(b"> ")
                terminal.type(said + b"\r")
                terminal.wait_for(said + b"\r\n")
                while len(terminal.shown) < 20:  # of the answer
                    terminal.shown += os.read(ours, 4096)
                terminal.type(b"\x03")
                terminal.wait_for(b"; stopped")
            terminal.wait_for(b"> ")
            terminal.type(b"/quit\r")
            assert process.wait(TIMEOUT_S) == 0
        finally:
            process.kill()
            os.close(ours)


def test_a_conversation_goes_on_as_if_it_were_read_anew(run, monkeypatch):
    monkeypatch.setattr(stream, "CHUNK", 4)
    monkeypatch.setattr(stream, "SMALLEST_CACHE", 128)
    going_on = make_chat(run, system="th")
    for said in ("one", "<|end|>two", "thththth three", "four", "five five"):
        before = list(going_on.messages)
        got = "".join(going_on.reply(said))
        alone = make_chat(run, system="th")
        alone.messages = before
        assert got == "".join(alone.reply(said))
        assert going_on.messages == alone.messages
    assert going_on.num_dropped > 0
    roles = [message.role for message in going_on.messages]
    assert roles == [SYSTEM, *[USER, ASSISTANT] * (len(roles) // 2)]
    assert going_on.messages[-2].content == "five five"
    assert going_on.num_read <= CONTEXT


def test_what_is_broken_off_stays_as_the_answer(run):
    chatting = make_chat(run, temperature=0.0)
    pieces = chatting.reply("hello")
    for _ in range(3):
        next(pieces)
    pieces.close()
    assert chatting.messages[-1].role == ASSISTANT and len(chatting.messages[-1].content) == 3
    assert not chatting.cut
    list(chatting.reply("on"))
    assert chatting.cut and len(chatting.messages) == 4
    chatting.reset()
    assert chatting.messages == []


def test_pieces_are_whole_characters_and_end_before_a_stop(run):
    tokenizer = run.tokenizer
    text = "né 漢字🙂!"
    ids = list(text.encode())  # ids of the first 256 tokens are bytes
    format = ChatFormat(None, (tokenizer.special_ids["<|end|>"],), None)
    pieces = list(pieces_until_stop(iter([*ids, 256 + 1, 65]), tokenizer, format))
    assert "".join(pieces) == text and len(pieces) == len(ids) + 1
    assert all(len(piece) <= 1 for piece in pieces)
    cut = list(pieces_until_stop(iter(ids[:-2]), tokenizer, format))
    assert "".join(cut) == "né 漢字"  # the rest of a character that never came is not shown


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (" hello\nUser: more", "hello"),
        ("hello\nUse", "hello\nUse"),
        ("\n\nUse\nUser:", "Use"),
        ("\nUser:", "User:"),
        ("a\n\nUser:x", "a\n"),
    ],
)
def test_a_stop_text_is_not_shown_in_part_either(said, shown, run):
    format = ChatFormat(None, (), "\nUser:")
    pieces = pieces_until_stop(iter(said.encode()), run.tokenizer, format)
    so_far = ""
    for piece in pieces:
        so_far += piece
        assert shown.startswith(so_far)
    assert so_far == shown


def test_a_terminal_obeys_nothing_in_an_answer():
    assert "\x1b[2Jok\n\x9b\x07".translate(chat._CONTROLS) == r"\x1b[2Jok" + "\n" + r"\x9b\x07"


def test_a_run_knows_how_far_its_source_looks_back(launch, talker, tmp_path):
    args = ["--config.model.context_length=16", f"--source={talker.parent / 'source'}"]
    assert launch("--job=import", *args, f"--workdir={tmp_path / 'run'}").code == 0
    usage = json.loads((tmp_path / "run" / "tokenizer_config.json").read_text())
    assert usage["model_max_length"] == CONTEXT
    short = open_run(tmp_path / "run")
    assert short.cfg.model.context_length == 16
    assert chat.context_of(short, usage, None) == CONTEXT
    assert chat.context_of(short, usage, 7) == 7


@pytest.mark.parametrize(
    ("args", "part"),
    [
        ([], "--job=chat needs --workdir"),
        (["--workdir={run}", "--top_p=2"], "top_p=2"),
        (["--workdir={run}", "--context=1"], "--context"),
        (["--workdir={run}", "--config.seed=1"], "--config.seed"),
    ],
)
def test_bad_input_is_one_line(args, part, launch, talker):
    outcome = launch("--job=chat", *(arg.format(run=talker) for arg in args))
    assert outcome.code == 2 and part in outcome.err and outcome.err.count("\n") == 1


def test_a_broken_template_is_one_line(launch, talker, tmp_path):
    shutil.copytree(talker, tmp_path / "run")
    file = tmp_path / "run" / "tokenizer_config.json"
    file.write_text(json.dumps({"chat_template": "{% if %}"}))
    outcome = launch("--job=chat", f"--workdir={tmp_path / 'run'}")
    assert outcome.code == 2 and "chat template, line 1" in outcome.err
    assert outcome.err.count("\n") == 1
