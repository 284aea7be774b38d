"""Counts what of the lecture is not in Chinese yet: a message of the pages without a translation, or with an old one.

python docs/translated.py build/docs/gettext
"""

import sys
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.pofile import read_po

TRANSLATIONS = Path(__file__).parent / "locale" / "zh_CN" / "LC_MESSAGES"


def messages(file: Path) -> Catalog:
    """What a file of messages holds."""
    with file.open("rb") as stream:
        return read_po(stream)


def untranslated(templates: Path) -> tuple[int, list[str]]:
    """The number of messages, and a line for each that has no translation."""
    count, lines = 0, []
    for template in sorted(templates.rglob("*.pot")):
        file = (TRANSLATIONS / template.relative_to(templates)).with_suffix(".po")
        known = messages(file) if file.exists() else None
        for message in messages(template):
            if message.id:
                count += 1
                there = known.get(message.id) if known else None
                if there is None or not there.string or there.fuzzy:
                    lines.append(f"{file.relative_to(TRANSLATIONS)}: {str(message.id)[:90]!r}")
    return count, lines


if __name__ == "__main__":
    count, missing = untranslated(Path(sys.argv[1]))
    print("\n".join(missing))
    print(f"{count - len(missing)} of {count} paragraphs are translated")
    sys.exit(bool(missing))
