"""Counting and encoding by several processes: as by one, in order, bounded, ended with it."""

import functools
import itertools
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from doubling import doubled_after, killed_at_once
from job_runs import TIMEOUT_S

from jaxlm.core.config import ConfigError
from jaxlm.data.config import DataConfig
from jaxlm.data.corpus import open_corpus
from jaxlm.data.token_file import cached_token_file, open_token_file
from jaxlm.jobs import long_texts, setup
from jaxlm.jobs.long_texts import map_in_order
from jaxlm.tokenizers import TokenizerConfig, character_tokenizer, pretokens, train_tokenizer

RNG = np.random.default_rng(0)
TEXT = "".join(RNG.choice(list("abc d\n.,'s1é🙂"), size=4000))


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(long_texts, "BATCH", 700)
    monkeypatch.setattr("jaxlm.tokenizers.pieces.BLOCK", 300)


@pytest.mark.parametrize("num_processes", [1, 2])
def test_results_come_in_order_and_errors_at_their_place(num_processes):
    results, read = [], []

    def items():
        for n in itertools.count():
            read.append(n)
            yield n

    with pytest.raises(ConfigError, match="seven"):
        for result in map_in_order(doubled_after, (0.01,), items(), num_processes):
            results.append(result)
            assert len(read) <= len(results) + 2 * num_processes
    assert results == [0, 2, 4, 6, 8, 10, 12]


def test_counts_and_merges_are_those_of_one_process(small_batches):
    config = TokenizerConfig(kind="bpe", vocab_size=290, special_tokens=("d\n",))
    texts = [TEXT[i : i + 37] for i in range(0, len(TEXT), 37)]
    count = functools.partial(long_texts.count_pretokens, num_processes=2)
    alone, read = train_tokenizer(config, texts), []
    assert (
        train_tokenizer(config, texts, count=count, on_merge=read.append).content == alone.content
    )
    assert read == list(range(1, 290 - 256 - 1 + 1))
    pieces = [TEXT[:1500] + " ", " " + TEXT[1500:]]
    assert count("none", pieces) == pretokens.count_pretokens("none", pieces)


def test_a_long_text_becomes_the_token_file_of_one_process(small_batches, tmp_path, monkeypatch):
    for name, part in {"a": TEXT[:11], "b": TEXT[11:3000], "c": "x" * 50, "d": TEXT[3000:]}.items():
        (tmp_path / name).write_text(part, encoding="utf-8", newline="")
    corpus = open_corpus(DataConfig(path=str(tmp_path), document_separator="a"))
    monkeypatch.setattr(long_texts, "num_cores", lambda: 2)
    config = TokenizerConfig(kind="bpe", vocab_size=280)
    tokenizer = setup.tokenizer_of(corpus, config)
    alone = cached_token_file(corpus, tokenizer, tmp_path / "alone")
    monkeypatch.setattr(long_texts, "LONG_TEXT", 1)
    assert setup.tokenizer_of(corpus, config).content == tokenizer.content
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    by_all = setup.token_file_of(corpus, tokenizer)
    assert by_all.read_bytes() == alone.read_bytes() and by_all != alone
    tokens = open_token_file(by_all, tokenizer.fingerprint)
    assert tokens.header.num_documents == corpus.num_documents > 100


def test_what_cannot_be_encoded_is_the_error_of_one_process(small_batches):
    tokenizer = character_tokenizer("abc", special_tokens=["<s>"])
    for document in (["abc" * 400, "d"], ["ab", "<", "s>"]):
        with pytest.raises(ConfigError) as alone:
            list(tokenizer.encode_iterable(document))
        with pytest.raises(ConfigError) as by_all:
            for parts in long_texts.encode_documents(tokenizer, [["a"], document], 2):
                list(parts)
        assert str(by_all.value) == str(alone.value)


def test_a_killed_process_is_one_line():
    with pytest.raises(ConfigError, match="was ended; if memory ran out"):
        list(map_in_order(killed_at_once, (), [1, 2, 3], 2))


SLOW = """
import os, sys, time
from jaxlm.jobs.long_texts import map_in_order

def make():
    return lambda item: (os.getpid(), time.sleep(item))[0]

if __name__ == "__main__":
    results = map_in_order(make, (), [0] * 4 + [0.5] * 1000, 2)
    print(next(results), next(results), flush=True)
    list(results)
"""


@pytest.mark.skipif(not os.path.exists("/proc"), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_outlives_the_one_that_started_it(tmp_path, number):
    (tmp_path / "slow.py").write_text(SLOW)
    command = [sys.executable, str(tmp_path / "slow.py")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, start_new_session=True, **pipes) as process:
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert len(set(workers)) == 2
        # What is typed at a terminal comes to all; only the first process may speak of it.
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        _, err = process.communicate(timeout=TIMEOUT_S)
        deadline = time.monotonic() + TIMEOUT_S
        while any(map(is_running, workers)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert err.count("Traceback") == (number == signal.SIGINT), err


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:  # one that nobody has waited for is still listed
        return file.read().rpartition(") ")[2][0] != "Z"
