"""The bundled plays are the ones that PROVENANCE.md describes."""

import hashlib
import importlib.resources
import lzma
import re

import pytest

from jaxlm.data import bundled
from jaxlm.data.bundled.make_shakespeare import clean
from jaxlm.data.config import DataConfig
from jaxlm.data.corpus import open_corpus

FOLDER = importlib.resources.files(bundled)
PACKED = FOLDER.joinpath(bundled.FILE_NAME).read_bytes()
TEXT = lzma.decompress(PACKED)


@pytest.mark.parametrize("name, data", [("`shakespeare.txt.xz`", PACKED), ("uncompressed", TEXT)])
def test_sizes_and_checksums_are_those_of_the_provenance(name, data):
    provenance = FOLDER.joinpath("PROVENANCE.md").read_text()
    row = re.search(rf"^\| {name} \| ([\d,]+) \| `(\w+)` \|$", provenance, re.MULTILINE)
    assert int(row[1].replace(",", "")) == len(data)
    assert row[2] == hashlib.sha256(data).hexdigest()


def test_small_enough_and_plain():
    assert len(PACKED) <= 2_000_000
    text = TEXT.decode("ascii")
    assert set(re.sub("[A-Za-z0-9]", "", text)) == set("\n\f !\"&'(),-.:;?[]")
    assert not re.search(r"gutenberg|copyright|trademark|\be-?text", text, re.IGNORECASE)
    assert not re.search(r" \n|\n\n\n|\r|\t", text)


def test_37_plays_from_their_titles_to_their_last_lines():
    corpus = open_corpus(DataConfig())
    plays = ["".join(pieces) for pieces in corpus.documents()]
    assert len(plays) == corpus.num_documents == 37
    assert len({play.splitlines()[0] for play in plays}) == 37
    for play in plays:
        assert play.splitlines()[0].isupper() and play.endswith("\n") and len(play) > 80_000
        assert len(re.findall(r"^ACT\b", play, re.MULTILINE | re.IGNORECASE)) >= 3
    assert plays[0].startswith("ALL'S WELL THAT ENDS WELL\n")
    hamlet = next(play for play in plays if play.startswith("HAMLET"))
    assert "To be, or not to be,--that is the question:--" in hamlet
    assert corpus.num_bytes == len(TEXT) - 36 * len(bundled.SEPARATOR)
    assert bundled.SEPARATOR.join(plays).encode() == TEXT


def test_cleaning_rules():
    dirty = (
        "TITLE\r\n\r\nby William Shakespeare\r\n\n\n\nA,  }Heads of houses\nB, }\n@@@\n"
        "LORD. {Aside.] I have _tremor_ on me/\tsad. \n\n\n\n[Exeunt.}\n\nTHE END"
    )
    assert clean(dirty) == (
        "TITLE\n\nA, Heads of houses\nB,\nLORD. [Aside.] I have tremor on me, sad.\n\n[Exeunt.]\n"
    )
