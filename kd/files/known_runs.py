"""Names of the runs that exist, for messages about one that does not."""

import os
from pathlib import Path

from kd.errors import nearest, nearest_beside


def which_runs(missing: Path) -> str:
    """Name the run or folder nearest to one that is not there, as the end of a message.

    Without a near one it names the latest runs beside it and in the output folder.
    """
    output = Path(os.environ.get("KD_OUTPUT_DIR", "outputs")).expanduser() / "runs"
    rooms = dict.fromkeys([missing.parent, output])
    runs = [each.parent for room in rooms for each in sorted(room.glob("*/report.json"))]
    if like := [each for each in runs if missing.name and missing.name in each.name]:
        return f"; did you mean {str(like[-1])!r}?"
    latest = f"; the latest runs are {', '.join(map(str, runs[-3:]))}" if runs else ""
    return nearest_beside(missing) or nearest(missing.name, list(map(str, runs))) or latest
