"""The table of commands on a finished run agrees with their modules, configs and bodies."""

import importlib
import inspect

import pytest
from hydra.utils import get_method

from kd.command import CONF
from kd.run_commands import TABLE, RunCommand, command_of


@pytest.mark.parametrize("command", TABLE, ids=lambda command: command.name)
def test_a_command_has_its_module_config_and_body(command: RunCommand) -> None:
    assert command_of(command.name) is command
    module = importlib.import_module(f"kd.{command.name}")
    assert f"python -m kd.{command.name} run=" in str(module.__doc__)
    assert (CONF / f"{command.name}.yaml").is_file()
    assert set(command.floats) <= set(command.request.model_fields)
    _, request, line = inspect.signature(get_method(command.body)).parameters.values()
    assert request.annotation is command.request
    assert line.name == "command"
