"""Every line of every shell block: its programs and files exist, and its options are those that they take."""

from __future__ import annotations

import argparse
import importlib.util
import re
import shlex
import sys

import pytest
import snippets
from snippets import ROOT

LAUNCHERS = re.compile(r"(?:torchrun --nproc-per-node \S+|accelerate launch(?: --cpu| --multi_gpu)?(?: --num_processes \S+)?) ")
TOOLS = {"pytest", "ruff", "mypy", "clang-format", "mkdocs", "."}
COMMANDS = sorted(
    {
        (page, command.strip())
        for page in snippets.pages()
        for block in snippets.blocks(page, "bash")
        for line in block.text.replace("\\\n", " ").splitlines()
        for command in re.split(r"&&|;", line.partition("  #")[0])
        if command.strip() and not command.strip().startswith("#")
    }
)


def parser_of(module: str) -> argparse.ArgumentParser:
    found = importlib.import_module(module).build_parser()
    assert isinstance(found, argparse.ArgumentParser)
    return found


def check_script(script: str, options: list[str]) -> None:
    """Its parser takes the options; of a script that builds none apart, its text names them."""
    assert (ROOT / script).is_file(), f"there is no {script}"
    text = (ROOT / script).read_text(encoding="utf-8")
    if not script.startswith("examples/") or "def build_parser" not in text:
        assert all(option in text for option in options if option.startswith("--"))
        return
    module = script.removeprefix("examples/").removesuffix(".py").replace("/", ".")
    if module == "compare":
        cut = options.index("--")
        arguments = parser_of(module).parse_args(options[:cut])
        parser_of(f"{arguments.trainer}.train").parse_args([*options[cut + 1 :], "--out", "x"])
    else:
        parser_of(module).parse_args(options)


def check_install(words: list[str]) -> None:
    """The extras are those of pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = re.findall(r"^(\w+) = \[", text.split("[project.optional-dependencies]")[1].split("\n[")[0], flags=re.MULTILINE)
    for word in words:
        if found := re.fullmatch(r"(?:\.|gradsurgery)\[([\w,]+)\]", word):
            assert set(found[1].split(",")) <= set(extras)


def check(command: str) -> None:
    words = shlex.split(LAUNCHERS.sub("python ", re.sub(r"\$\(.*?\)", "X", command)))
    while "=" in words[0]:  # settings in front
        words.pop(0)
    program, *rest = words
    if program == "pip":
        assert rest[0] == "install"
        check_install(rest[1:])
    elif program == "gradsurgery":
        check_gradsurgery(rest)
    elif program == "python" and rest[0] == "-m":
        assert rest[1] in sys.stdlib_module_names or importlib.util.find_spec(rest[1]) is not None
    elif program == "python":
        check_script(rest[0], rest[1:])
    else:
        assert program in TOOLS, f"{program}: what is that?"


def check_gradsurgery(words: list[str]) -> None:
    """The package's own command takes them."""
    from gradsurgery.commands import _parser

    _parser().parse_args(words)


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_commands_are_taken(page: str, command: str) -> None:
    check(command)


@pytest.mark.parametrize(
    "command",
    [
        "python examples/cifar10/train.py --no-such-option --out x",
        "python examples/none.py",
        "python tools/readme.py --no-such-option",
        "torchrun --nproc-per-node 2 examples/many_gpus.py --no-such-option",
        "pip install '.[none]'",
        "rm -rf /",
    ],
)
def test_others_are_refused(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((AssertionError, SystemExit)):
        check(command)
    capsys.readouterr()


def test_pages_of_commands_are_found() -> None:
    assert {"README.md", "CONTRIBUTING.md", "docs/distributed.md", "docs/results.md", "docs/trainers.md"} <= {
        page for page, _ in COMMANDS
    }
