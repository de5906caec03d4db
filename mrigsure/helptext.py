"""What `mrigsure --help` and `mrigsure COMMAND --help` print, out of the settings' docstrings."""

import shutil
import textwrap

from mrigsure.arguments import Argument, usage

_COLUMN = 30  # where the explanations begin
_WIDEST = 110
_COMMON = [
    ("--config PATH", "YAML file with any of these, named alike; the command line wins"),
    ("--debug", "show the traceback of an error"),
    ("-h, --help", "show this"),
]


def overview(commands: dict[str, type]) -> str:
    """The help of the program; `commands` maps every subcommand to its settings."""
    return "\n\n".join(
        [
            "usage: mrigsure COMMAND ...",
            "MRI reconstruction with diffusion priors that never saw a clean scan.",
            "commands:\n" + _table([(name, _summary(settings)) for name, settings in commands.items()]),
            "`mrigsure COMMAND --help` explains a command, `mrigsure --version` says which version this is.",
        ]
    )


def command_help(command: str, settings: type, known: list[Argument]) -> str:
    """The help of one subcommand."""
    blocks = [f"usage: mrigsure {command} {usage(known)}", textwrap.fill(_summary(settings), _width())]
    positional = [(argument.usage, _explained(argument)) for argument in known if argument.positional]
    if positional:
        blocks.append("arguments:\n" + _table(positional))
    options = [(argument.usage, _explained(argument)) for argument in known if not argument.positional]
    return "\n\n".join([*blocks, "options:\n" + _table(options + _COMMON)])


def _summary(settings):
    return settings.__doc__.split("\n")[0]


def _explained(argument):
    default = argument.default
    if argument.required or default is None or default is False:
        return argument.help
    return f"{argument.help} (default: {' '.join(map(str, default)) if isinstance(default, tuple) else default})"


def _table(rows):
    """Two columns, the second folded at the terminal's width; a long first one takes a line of its own."""
    lines = []
    for left, right in rows:
        first, *others = textwrap.wrap(right, _width() - _COLUMN)
        if len(left) + 4 > _COLUMN:
            lines.append(f"  {left}")
            left = ""
        lines.append(f"  {left}".ljust(_COLUMN) + first)
        lines += [" " * _COLUMN + line for line in others]
    return "\n".join(lines)


def _width():
    return min(shutil.get_terminal_size().columns, _WIDEST)
