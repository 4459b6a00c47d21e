"""--job=tokenizer: what it saves and says, and one line for what it cannot do."""

import signal

import pytest
from job_runs import TIMEOUT_S, snapshot

from jaxlm.tokenizers import TokenizerConfig, load_tokenizer, read_tiktoken_ranks, train_tokenizer

JOB = "--job=tokenizer"


def test_it_trains_saves_and_shows(launch, text, tmp_path):
    size = "--config.tokenizer.vocab_size=270"
    outcome = launch(JOB, f"--config.data.path={text}", size, f"--workdir={tmp_path}/a/b")
    assert outcome.code == 0 and outcome.err == ""
    names = ["merges.txt", "ranks.tiktoken", "tokenizer.json", "transformers", "vocab.json"]
    assert sorted(p.name for p in (tmp_path / "a/b").iterdir()) == names
    tokenizer = load_tokenizer(tmp_path / "a/b/tokenizer.json")
    whole = text.read_text()
    alone = train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=270), [whole])
    assert tokenizer.content == alone.content
    assert read_tiktoken_ranks(tmp_path / "a/b/ranks.tiktoken").content == alone.content
    ids = alone.encode(whole).tolist()
    out = outcome.out
    assert f"words.txt: {len(whole):,} bytes" in out
    assert f"tokens    {len(ids):,}, {len(whole) / len(ids):.4f} bytes a token" in out
    assert f"270 ids, of which {len(set(ids))} are in the text" in out
    longest, rarest = (part.splitlines()[1:] for part in out.split(" tokens ")[-2:])
    most = max(map(len, alone.pieces))
    assert longest[0].split()[-2:] == [
        str(most),
        str(max(ids.count(id) for id, piece in enumerate(alone.pieces) if len(piece) == most)),
    ]
    assert int(rarest[0].split()[-1]) == min(ids.count(id) for id in range(256, 270))


def test_a_tokenizer_of_others_is_saved_as_ours(launch, text, tmp_path):
    flags = (JOB, f"--config.data.path={text}", "--config.tokenizer.pattern=cl100k")
    assert launch(*flags, "--config.tokenizer.vocab_size=270", f"--workdir={tmp_path}/a").code == 0
    before = snapshot(tmp_path / "a")
    for path in ("a/ranks.tiktoken", "a", "a/transformers", "a/transformers/tokenizer.json"):
        folder = tmp_path / f"from {path}".replace("/", " ")
        outcome = launch(
            *flags, f"--config.tokenizer.path={tmp_path}/{path}", f"--workdir={folder}"
        )
        assert outcome.code == 0, outcome.err
        assert snapshot(folder) == before


@pytest.mark.parametrize("kind", ["characters", "bytes"])
def test_the_other_kinds_too(launch, text, tmp_path, kind):
    flags = (f"--config.data.path={text}", f"--config.tokenizer.kind={kind}")
    outcome = launch(JOB, *flags, f"--workdir={tmp_path}/a")
    assert outcome.code == 0 and "1.0000 bytes a token" in outcome.out
    assert load_tokenizer(tmp_path / "a/tokenizer.json").kind == kind


def test_without_a_workdir_it_takes_a_new_folder(launch, text):
    flags = (JOB, f"--config.data.path={text}", "--config.tokenizer.vocab_size=260")
    before = set(launch.cwd.glob("runs/tokenizer-*"))
    assert "tokenizer.json" in launch(*flags).out
    assert launch(*flags).code == 0
    assert len(set(launch.cwd.glob("runs/tokenizer-*")) - before) == 2


SIZE = "--config.tokenizer.vocab_size=270"
REFUSED = {
    "no size": ([], ["kind=bpe needs vocab_size"]),
    "too small": (
        ["--config.tokenizer.vocab_size=257", "--config.tokenizer.special_tokens=<a>,<b>"],
        ["vocab_size=257 is below 258", "2 special_tokens"],
    ),
    "too large": (["--config.tokenizer.vocab_size=9999"], ["vocab_size=9999", "at most"]),
    "specials twice": ([SIZE, "--config.tokenizer.special_tokens=<a>,<a>"], ["'<a>'", "once"]),
    "empty": ([SIZE, "--config.data.path={folder}/empty"], ["the file is empty"]),
    "not UTF-8": ([SIZE, "--config.data.path={folder}/latin1"], ["0xe9", "invalid_utf8=replace"]),
    "no text": ([SIZE, "--config.data.path={folder}/none"], ["no such file"]),
    "ranks with a hole": (
        ["--config.tokenizer.path={folder}/hole.tiktoken"],
        ["hole.tiktoken: rank 1 is missing"],
    ),
    "ranks given twice": (
        ["--config.tokenizer.path={folder}/twice.tiktoken"],
        ["twice.tiktoken line 2: rank 0 is there already"],
    ),
    "two files that are not there": (
        ["--config.tokenizer.path={folder}/files"],
        ["files/vocab.json: No such file"],
    ),
    "a special token in the text": (
        [SIZE, "--config.tokenizer.special_tokens=cat"],
        ["special token 'cat'"],
    ),
    "a field of the model": ([SIZE, "--config.model.num_layers=2"], ["only data and tokenizer"]),
    "a folder with a tokenizer": (
        [SIZE, "--workdir={folder}/files/old"],
        ["tokenizer.json already"],
    ),
    "below a file": ([SIZE, "--workdir={folder}/empty/x"], ["--workdir=", "Not a directory"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_one_line(launch, text, tmp_path, name):
    (tmp_path / "files/old").mkdir(parents=True)
    (tmp_path / "files/old/tokenizer.json").touch()
    for file, data in {
        "empty": b"",
        "latin1": b"caf\xe9",
        "hole.tiktoken": b"YQ== 0\nYg== 2\n",
        "twice.tiktoken": b"YQ== 0\nYg== 0\n",
    }.items():
        (tmp_path / file).write_bytes(data)
    flags, fragments = REFUSED[name]
    flags = [flag.format(folder=tmp_path) for flag in flags]
    for flag in (f"--config.data.path={text}", f"--workdir={tmp_path}/new"):
        if not any(f.startswith(flag.partition("=")[0]) for f in flags):
            flags.append(flag)
    before = snapshot(tmp_path)
    outcome = launch(JOB, *flags)
    assert outcome.code == 2 and outcome.err.count("\n") == 1, outcome
    for fragment in fragments:
        assert fragment in outcome.err
    assert snapshot(tmp_path) == before and not (tmp_path / "new").exists()


def test_invalid_utf8_can_be_replaced(launch, tmp_path):
    (tmp_path / "latin1").write_bytes(b"caf\xe9 " * 50)
    flags = (f"--config.data.path={tmp_path}/latin1", "--config.data.invalid_utf8=replace")
    outcome = launch(JOB, *flags, "--config.tokenizer.vocab_size=260", f"--workdir={tmp_path}/a")
    assert outcome.code == 0, outcome.err


def test_interrupted_it_leaves_nothing(launch, tmp_path):
    (tmp_path / "text").write_text(" ".join(map(str, range(1_000_000))))
    flags = (f"--config.data.path={tmp_path}/text", "--config.tokenizer.vocab_size=100000")
    with launch.start(JOB, *flags, f"--workdir={tmp_path}/new") as process:
        assert process.stdout.readline().startswith("text ")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130 and err == "launch.py: interrupted\n"
    assert not (tmp_path / "new").exists()
