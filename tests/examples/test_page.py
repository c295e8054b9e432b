"""docs/trainers.md: every command on the page is one that its program takes, and every trainer is on the page."""

import importlib
import re
import shlex
from pathlib import Path

import compare
import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/trainers.md").read_text(encoding="utf-8")
LAUNCHERS = r"python|torchrun --nproc-per-node \d|accelerate launch (?:--multi_gpu |--cpu )?--num_processes \d"
COMMANDS = re.findall(rf"^(?:{LAUNCHERS}) (examples/\S+\.py.*)$", PAGE, flags=re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command: str) -> None:
    script, *options = shlex.split(command)
    assert (ROOT / script).is_file()
    if script == "examples/compare.py":
        cut = options.index("--")
        arguments = compare.build_parser().parse_args(options[:cut])
        _parser(f"{arguments.trainer}.train").parse_args([*options[cut + 1 :], "--out", "x"])
    else:
        _parser(script.removeprefix("examples/").removesuffix(".py").replace("/", ".")).parse_args(options)


def _parser(module: str):  # type: ignore[no-untyped-def]  # argparse.ArgumentParser
    return importlib.import_module(module).build_parser()


def test_every_launcher_is_on_the_page() -> None:
    assert set(re.findall(r"^(\w+) .*examples/\S+\.py", PAGE, flags=re.MULTILINE)) == {"python", "torchrun", "accelerate"}


def test_every_trainer_is_on_the_page() -> None:
    assert len(COMMANDS) > 10
    assert {command.split("/")[1] for command in COMMANDS if command.startswith("examples/") and "/train.py" in command} == set(
        compare.TRAINERS
    )
    headings = re.findall(r"^## (.*)$", PAGE, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([\w-]+)\)", PAGE)) <= anchors
