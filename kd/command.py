"""Running a command: Hydra's composition, and every way to end, each with its exit code."""

import functools
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kd.errors import Failed, Interrupted, UserError, nearest
from kd.writing import cause_of

T = TypeVar("T")

# Absolute, so that a command works from any folder and under any name.
CONF = Path(__file__).resolve().parents[1] / "conf"


def run_command(main: Callable[[], Any], module: str) -> NoReturn:
    """Run a command's Hydra main and leave the process with its exit code.

    0 done; 2 the user can mend it, told in a few lines on stderr; 130 interrupted, with the line that resumes;
    1 some part has failed and is named, or a defect of ours, with its traceback.

    Args:
        module: what comes after `python -m`.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its exceptions on instead of leaving with its own exit code
    debug = any(argument.removeprefix("+") == "debug=true" for argument in sys.argv[1:])
    try:
        error: BaseException | None = None
        try:
            with asked_to_leave():
                main()
        except Leave as leave:
            error = leave.__cause__
        if error:
            raise error
    except (UserError, ConfigCompositionException, MissingConfigException, OverrideParseException) as error:
        if debug:
            raise
        print(f"kd: {explain(error, module.rpartition('.')[2])}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if debug or (cause := cause_of(error)) is None:
            raise
        print(f"kd: {error.filename or 'a file, or the terminal'}: {cause}", file=sys.stderr)
        sys.exit(2)
    except Failed as error:
        print(f"kd: {error}", file=sys.stderr)
        sys.exit(1)
    except ValueError as error:  # Hydra's own word for flags that exclude each other
        if debug or not str(error).startswith("Only one of --run"):
            raise
        print(f"kd: {error}", file=sys.stderr)
        sys.exit(2)
    except (Interrupted, KeyboardInterrupt):
        print(f"kd: interrupted; the same command goes on from here:\n  {this_command(module)}", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


@contextmanager
def asked_to_leave() -> Iterator[None]:
    """Take what a cluster sends before it ends a job, SIGTERM or SIGUSR1, as a Ctrl-C."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]
    before = {number: signal.signal(number, leave) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


class Leave(BaseException):
    """Carries an error past Hydra, which would announce it in its own words."""


def job(function: Callable[[T], object], checked: Callable[[DictConfig, set[str]], T]) -> Callable[[DictConfig], None]:
    """Make a Hydra job of a function of the checked config.

    Args:
        checked: checks the composed config, given the top-level keys that were typed.
    """

    @functools.wraps(function)
    def run(cfg: DictConfig) -> None:
        try:
            function(checked(cfg, typed_keys(HydraConfig.get().overrides.task)))
        except (UserError, Failed, Interrupted, KeyboardInterrupt) as error:
            raise Leave from error

    return run


def typed_keys(overrides: Iterable[str]) -> set[str]:
    """The top-level keys that these overrides set, those of a sweep's job among them."""
    return {override.lstrip("+~").partition("=")[0].partition(".")[0] for override in overrides}


def this_command(module: str) -> str:
    """The line that started this process, to be typed again."""
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


def explain(error: Exception, config: str = "train") -> str:
    """An error of the user's in words: what was found, what is accepted, and the nearest match.

    Args:
        config: the name of the command's config.
    """
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, member = str(error.missing_cfg_file).rpartition("/")
        options = [str(option) for option in error.options or []]
        return f"{group}: there is no {member!r}; accepted are {', '.join(options)}{nearest(member, options)}"
    if isinstance(error, UserError):
        return str(error)
    cause = error.__cause__ or error.__context__
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        return f"{cause.full_key}: no such key{nearest(str(cause.full_key), _keys(config))}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: not an override of the form KEY=VALUE: {error.message}"
    first = str(error).strip().splitlines()[0]
    return f"{first}: -m runs each of the values, [...] is a list" if first.startswith("Ambiguous value") else first


def folder_of(config: str) -> Path:
    """Where a command's config is: in `conf`, or in a folder of its name there."""
    own = CONF / config
    return own if (own / f"{config}.yaml").is_file() else CONF


def _keys(config: str) -> list[str]:
    """All dotted keys of the config with the groups that were asked for, and the names of all groups."""
    GlobalHydra.instance().clear()
    folder = folder_of(config)
    groups = [path.name for path in folder.iterdir() if path.is_dir()]
    chosen = [argument for argument in sys.argv[1:] if argument.partition("=")[0] in groups and "," not in argument]
    with initialize_config_dir(str(folder), version_base="1.3"):
        try:
            cfg = compose(config, chosen)
        except HydraException:
            cfg = compose(config)
    return [*groups, *_walk(OmegaConf.to_container(cfg, resolve=False))]  # type: ignore[arg-type]


def _walk(cfg: Mapping[Any, Any], prefix: str = "") -> list[str]:
    keys = []
    for name, value in cfg.items():
        keys.append(f"{prefix}{name}")
        if isinstance(value, Mapping):
            keys += _walk(value, f"{prefix}{name}.")
    return keys
