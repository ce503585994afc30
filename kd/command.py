"""Runs a command: Hydra's composition, and exit codes for every way to end."""

import functools
import hashlib
import inspect
import os
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn, TypeVar

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException
from pydantic import BaseModel

import kd.config.loss_numbers  # noqa: F401 - Hydra asks it, see conf/train.yaml
from kd.config.checking import dotted_keys, reference_error
from kd.config.trainer import INSTEAD
from kd.config.usage import usage
from kd.errors import CommandError, StopRequest, UserError, nearest
from kd.files.locks import free
from kd.files.writing import cause_of, writing
from kd.log import printable
from kd.ranks import current, find_launch, follow, lead

T = TypeVar("T")

MANY = "add -m to sweep over the values, or write [1,2] for a list"

# Absolute, so that a command works from any folder. A wheel has conf inside the package.
HERE = Path(__file__).resolve().parent
CONF = HERE / "conf" if (HERE / "conf").is_dir() else HERE.parent / "conf"


def run_command(
    main: Callable[[], object],
    module: str,
    model: type[BaseModel] | None = None,
    doc: str | None = None,
) -> NoReturn:
    """Run a command's main and exit with its code.

    0: done. 2: the user can fix it; a few lines on stderr. 130: interrupted; shows the command that
    resumes. 1: some part failed and is named, or a bug of ours, with its traceback.
    Of the processes of torchrun or srun, the first runs the command and the others join it.

    Args:
        module: what follows `python -m`.
        model: schema of the config; None for a command that parses its own arguments.
        doc: text of `--help`; None for the docstring of main's module.
    """
    if model:
        sys.argv[1:] = tidy(sys.argv[1:])
    command = functools.partial(_exit_code, main, module, model, doc)
    launch = find_launch(sys.argv[1:])
    if launch is None:
        sys.exit(command())
    if launch.rank == 0:
        sys.exit(lead(launch, command))
    with stop_on_signal():
        sys.exit(follow(launch))


def _exit_code(
    main: Callable[[], object], module: str, model: type[BaseModel] | None, doc: str | None
) -> int:
    """Run a command's main, print its errors and return the exit code."""
    name = module.rpartition(".")[2]
    if model and {"-h", "--help"} & set(sys.argv[1:]):
        doc = doc or inspect.unwrap(main).__globals__["__doc__"]
        _print_help(usage(doc, folder_of(name), name, model, sys.argv[1:]))
        return 0
    # Hydra hands its exceptions on instead of leaving with its own exit code
    os.environ["HYDRA_FULL_ERROR"] = "1"
    debug = any(argument.removeprefix("+") == "debug=true" for argument in sys.argv[1:])
    try:
        _run(main, name, debug)
    except (UserError, HydraException) as error:
        if debug:
            raise
        print(printable(f"kd: {explain(error, name)}"), file=sys.stderr)
        return 2
    except OSError as error:
        if debug or (cause := cause_of(error)) is None:
            raise
        print(f"kd: {error.filename or 'a file, or the terminal'}: {cause}", file=sys.stderr)
        return 2
    except CommandError as error:
        print(printable(f"kd: {error}"), file=sys.stderr)
        return 1
    except (StopRequest, KeyboardInterrupt):
        print(
            f"kd: interrupted; the same command goes on from here:\n  {this_command(module)}",
            file=sys.stderr,
        )
        return 130
    except SystemExit as left:
        if isinstance(left.code, str):
            raise
        return left.code or 0
    return 0


def _print_help(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `--help | head` has what it wanted; Python flushes again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(main: Callable[[], object], name: str, debug: bool) -> None:
    """Run a command's main; turn errors of Hydra into the user's."""
    error: BaseException | None = None
    try:
        with stop_on_signal():
            main()
    except Leave as leave:
        error = leave.__cause__
    except Exception as found:
        if debug or not of_hydra(found):
            raise
        raise UserError(explain(found, name)) from found
    if error:
        raise error


def tidy(words: Sequence[str]) -> list[str]:
    """Move Hydra's flags before the overrides, and expand `~`.

    Hydra's parser takes no override after a flag that follows one. A shell expands `~` only at the
    start of a word.
    """
    takes = {
        flag: action.nargs
        for action in get_args_parser()._actions
        for flag in action.option_strings
    }
    flags = list[str]()
    rest = list[str]()
    left = list(words)
    while left:
        word = left.pop(0)
        if word not in takes:
            home = re.sub(r"(?<==)~(?=/|$)", lambda _: os.path.expanduser("~"), word, count=1)
            (flags if word.startswith("-") and "=" in word else rest).append(home)
            continue
        flags.append(word)
        if takes[word] is None and left:
            flags.append(left.pop(0))
    return [*flags, *rest]


@contextmanager
def stop_on_signal() -> Iterator[None]:
    """Treat SIGTERM and SIGUSR1, which clusters send before they end a job, like Ctrl-C."""

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
    """Carries an error through Hydra, which would print it in its own way."""


def of_hydra(error: Exception) -> bool:
    """Whether an error is Hydra's about the command line, and not one of the job's, see `Leave`."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return str(frames[-1][0].f_globals.get("__name__")).partition(".")[0] in (
        "hydra",
        "omegaconf",
        "antlr4",
    )


def job(
    function: Callable[[T], object], checked: Callable[[DictConfig, set[str]], T]
) -> Callable[[DictConfig], None]:
    """Turn a function of the checked config into a Hydra job.

    Args:
        checked: checks the composed config, given the top-level keys on the command line.
    """

    @functools.wraps(function)
    def run(cfg: DictConfig) -> None:
        try:
            config = checked(cfg, typed_keys(typed_overrides()))
            with only_one_of_a_step(config):
                function(config)
        except (Exception, KeyboardInterrupt) as error:
            raise Leave from error

    return run


@contextmanager
def only_one_of_a_step(config: object) -> Iterator[None]:
    """Refuse to be a second task of a SLURM step with an equal config; another seed is another
    config.

    Raises:
        UserError: another task of the step runs it.
    """
    step = "-".join(os.environ.get(f"SLURM_{name}", "") for name in ("JOB_ID", "STEP_ID"))
    output = getattr(config, "output_dir", None)
    alone = int(os.environ.get("SLURM_NTASKS", "1")) == 1 or "" in step.split("-")
    if not isinstance(config, BaseModel) or output is None or alone or current():
        yield
        return
    key = hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:16]
    store = Path(output).expanduser() / "store"
    with writing(store):
        store.mkdir(parents=True, exist_ok=True)
    with free(store / f"slurm-{step}-{key}.lock") as mine:
        if not mine:
            count = os.environ["SLURM_NTASKS"]
            raise UserError(
                f"srun started {count} tasks of the same config, which would do the same; add "
                "trainer=ddp to have them train together, or give each its own seed=$SLURM_PROCID"
            )
        yield


def typed_overrides() -> list[str]:
    """Return the overrides as typed: Hydra's config has references resolved."""
    words = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    assert isinstance(words, list)
    return [str(word) for word in words]


def typed_keys(overrides: Iterable[str]) -> set[str]:
    """Return the keys that these overrides set, with their top-level keys."""
    keys = {override.lstrip("+~").partition("=")[0] for override in overrides}
    return keys | {key.partition(".")[0] for key in keys}


def this_command(module: str) -> str:
    """Return the command line of this process, to be typed again."""
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


def explain(error: Exception, config: str = "train", words: Sequence[str] | None = None) -> str:
    """Describe a user's error: what was found, what is accepted, and the nearest match.

    Args:
        config: name of the command's config.
        words: the overrides; None for those of the command line.
    """
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, member = str(error.missing_cfg_file).rpartition("/")
        options = [str(option) for option in error.options or []] or _options(group, config)
        where = group or "--config-name"
        return (
            f"{where}: there is no {member!r}; accepted are "
            f"{', '.join(options)}{nearest(member, options)}"
        )
    if str(error).startswith("Config group override must be"):
        typed_overrides = (
            [word for word in sys.argv[1:] if "=" in word] if words is None else list(words)
        )
        for word in OverridesParser.create().parse_overrides(typed_overrides):
            options = _options(word.key_or_group, config)
            if options and not isinstance(word.value(), (str, list)):
                return (
                    f"{word.key_or_group}: found {word.value()!r}, accepted are the files "
                    f"{', '.join(options)}"
                )
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, InterpolationKeyError):
        return reference_error(error, _compose(config))
    cause = error.__cause__ or error.__context__
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        key = str(cause.full_key)
        keys = _keys(config)
        group, _, option = key.rpartition(".")
        if group == "trainer" and option in INSTEAD:
            return f"{key}: kd sets it; {INSTEAD[option]}"
        return (
            f"{key}: cannot do without it"
            if key in keys
            else f"{key}: no such key{nearest(key, keys)}"
        )
    if isinstance(error, OverrideParseException):
        return how_to_quote(error, f"kd.{config}")
    first = str(error).strip().splitlines()[0]
    if first.startswith("Could not append to config"):
        return f"{first} Leave out the +."
    asks = first.startswith("Ambiguous value") or first.endswith("requires --multirun")
    return f"{first}: {MANY}" if asks else first


def how_to_quote(error: OverrideParseException, module: str) -> str:
    """Explain what is wrong with a word of the command line, and how to quote it.

    Args:
        module: what follows `python -m`.
    """
    words = sys.argv[1:]
    word = str(error.override)
    place = words.index(word) if word in words else 0
    about = ""
    if "=" not in word:
        about = f"{word}: not an override of the form KEY=VALUE"
        if not place or "=" not in words[place - 1]:
            return about
        about += "; if it belongs to the value before it, "
        place -= 1
        word = f"{words.pop(place)} {word}"
    key, _, value = word.partition("=")
    escaped = value.replace('"', '\\"')
    hopeless = value.startswith(("[", "{", "$", "'", '"')) or value.endswith(",")
    if hopeless or not _parses(quoted := f'{key}="{escaped}"'):
        return f"{word}: {str(error.message).strip().splitlines()[0]}"
    words[place] = quoted
    about = (
        about or f"{key}: Hydra cannot read {value!r} without quotes within those of the shell; "
    )
    return f"{about}type\n  {shlex.join(['python', '-m', module, *words])}"


def _parses(word: str) -> bool:
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return False
    return True


def folder_at(path: str) -> Path:
    """Return a path of the command line with `~` expanded."""
    return Path(path).expanduser()


def folder_of(config: str) -> Path:
    """Return the folder of a command's config: `conf`, or a folder of its name there."""
    own = CONF / config
    return own if (own / f"{config}.yaml").is_file() else CONF


def _options(group: str, config: str) -> list[str]:
    """Return the files of a config group."""
    return (
        sorted(path.stem for path in (folder_of(config) / group).glob("*.yaml"))
        if group
        else [config]
    )


def _keys(config: str) -> list[str]:
    """Return all dotted keys of the config with the chosen groups, and the names of all groups."""
    return [*_groups(config), *dotted_keys(_compose(config))]


def _groups(config: str) -> list[str]:
    return [path.name for path in folder_of(config).iterdir() if path.is_dir()]


def _compose(config: str) -> dict[str, object]:
    """Compose the config with the chosen groups, references unresolved."""
    GlobalHydra.instance().clear()
    groups = _groups(config)
    chosen = [
        argument
        for argument in sys.argv[1:]
        if argument.partition("=")[0] in groups and "," not in argument
    ]
    with initialize_config_dir(str(folder_of(config)), version_base="1.3"):
        try:
            cfg = compose(config, chosen)
        except HydraException:
            cfg = compose(config)
    return OmegaConf.to_container(cfg, resolve=False)  # type: ignore[return-value]
