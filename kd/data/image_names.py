"""Images by their names, as a text file lists them."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kd.data.images import Images
from kd.errors import UserError, nearest
from kd.log import number_of


@dataclass(frozen=True)
class ImageNames:
    """The names of a source's images.

    Attributes:
        known: of all images, also of those that are not in use.
        root: folder of the source; a name may be a path to a file below it.
        note: takes a remark on the data.
    """

    known: Sequence[str]
    root: Path
    note: Callable[[str], None]

    def positions(self, images: Images, file: Path, where: str) -> list[int]:
        """Return the positions of the images that a file lists, one name a line, sorted.

        Images that are listed and not among these are noted.

        Args:
            where: config key of the file, for messages.

        Raises:
            UserError: the file cannot be read, or lists an unknown image or none of these.
        """
        named = _lines(file, where)
        places = {name: i for i, name in enumerate(images.names)}
        there = places.keys() | set(self.known)
        names = {line: self._name(line, there) for line in named}
        unknown = [line for line, name in names.items() if name is None]
        if unknown:
            few = ", ".join(map(repr, unknown[:3])) + (" ..." if len(unknown) > 3 else "")
            raise UserError(
                f"{where}: {file} names {number_of(len(unknown), 'unknown image')}: {few}; the "
                f"images are called {images.names[0]!r} to "
                f"{images.names[-1]!r}{nearest(unknown[0], list(places))}"
            )
        found = set(names.values())
        kept = sorted(places[name] for name in found if name in places)
        if not kept:
            why = "; those that it names are in another part, or left out" if found else ""
            raise UserError(f"{where}: {file} names none of the images{why}")
        if others := len(found) - len(kept):
            self.note(
                f"{where}: of the {number_of(len(found), 'image')} in {file.name} {others} "
                f"{'is' if others == 1 else 'are'} in another part, or not in use; "
                f"{len(kept)} count"
            )
        return kept

    def _name(self, line: str, there: set[str]) -> str | None:
        """Return the image's name that a line means; None if it is unknown."""
        plain = os.path.normpath(line)
        below = os.path.relpath(line, self.root)
        # Where the root holds the class folders itself, `train/` is in no path
        found = (line, *(f"{part}{path}" for path in (plain, below) for part in ("", "train/")))
        return next((name for name in found if name in there), None)


def _lines(file: Path, where: str) -> list[str]:
    """Return the lines of a list without comments and empty ones."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{where}: cannot read {file.absolute()}: {reason}; accepted are null, a whole "
            "number, a share below 1, or a text file with an image's name on each line"
        ) from None
    return [line for line in lines if line and not line.startswith("#")]
