"""From a settings dataclass to a subcommand's arguments: what the command line and a YAML file may say.

The fields' types say how many words an option takes, so that `--acceleration 4 6 8 OUT` reads as it looks. Values are
checked and converted by jsonargparse, alike for both. A configuration is data: nothing in it names a class or a
function.
"""

import difflib
import re
import types
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Literal, Union, get_args, get_origin, get_type_hints

from mrigsure.errors import InputError

_METAVARS = {int: "N", float: "X", str: "PATH"}
_KINDS = {int: "a whole number", float: "a number", str: "a path", bool: "true or false"}


@dataclass(frozen=True)
class Argument:
    """One field of a settings dataclass.

    hint        the field's type
    item        type of one word of it: int, float, str, bool or a Literal
    most        largest number of words, None for any number
    scalar      True if a single word stands for itself, not for a list of one
    positional  its name on the command line where it is no option, else empty
    """

    name: str
    hint: object
    item: object
    most: int | None
    scalar: bool
    help: str
    default: object
    positional: str = ""

    @property
    def required(self) -> bool:
        return self.default is MISSING

    @property
    def choices(self) -> tuple[str, ...]:
        return get_args(self.item) if get_origin(self.item) is Literal else ()

    @property
    def words(self) -> tuple[str, ...]:
        """What it takes beside numbers, such as auto."""
        named = [option for option in get_args(self.hint) if get_origin(option) is Literal]
        return () if self.choices else tuple(word for option in named for word in get_args(option))

    @property
    def flag(self) -> bool:
        return self.item is bool

    @property
    def shown(self) -> str:
        """How messages name it: RAW or --center-fraction."""
        return self.positional or "--" + self.name.replace("_", "-")

    @property
    def usage(self) -> str:
        """It and its words: RAW..., --coils N N, --keep-target."""
        if self.positional:
            return self.positional + ("..." if self.most is None else "")
        word = "{" + ",".join(self.choices) + "}" if self.choices else _METAVARS.get(self.item, "")
        word = "|".join([word, *self.words])
        if self.most is None:
            word += " ..."
        elif self.most > 1:
            word = f"{word} [{word}]" if self.scalar else " ".join([word] * self.most)
        return f"{self.shown} {word}".rstrip()

    @property
    def expected(self) -> str:
        """What a value must be."""
        word = f"one of {', '.join(self.choices)}" if self.choices else ", or ".join([_KINDS[self.item], *self.words])
        if self.most is None:
            return f"one or more, each {word}"
        return word if self.most == 1 else f"{word}, or {self.most}" if self.scalar else f"{self.most}, each {word}"

    def accepts(self, word: str) -> bool:
        """Whether one more word belongs to this option, and not to the positional arguments."""
        return word in self.choices if self.choices else self.item in _METAVARS and _is_number(word)


def arguments(settings: type, positional: dict[str, str]) -> list[Argument]:
    """The arguments of a settings dataclass; `positional` gives the names of its positional fields, in order."""
    import docstring_parser

    texts = {item.arg_name: item.description for item in docstring_parser.parse(settings.__doc__).params}
    found = []
    for item in fields(settings):
        hint = get_type_hints(settings)[item.name]
        names = texts.get(item.name, ""), item.default, positional.get(item.name, "")
        found.append(Argument(item.name, hint, *_shape(hint), *names))
    return found


def parse(settings: type, known: list[Argument], words: list[str]):
    """The settings that the command line's `words` and the YAML file after --config ask for; the words win.

    Raises InputError for an unknown option, a missing or superfluous argument, and a value of the wrong kind.
    """
    by_name = {argument.name: argument for argument in known}
    given, config = _split(known, words)
    values = {}
    if config is not None:
        for name, value in _load(config, list(by_name)).items():
            values[name] = _check(by_name[name], value, f"{config}: {name}")
    for name, value in given.items():
        values[name] = _check(by_name[name], value, by_name[name].shown)
    missing = [argument.shown for argument in known if argument.required and argument.name not in values]
    if missing:
        raise InputError("command line", f"no {' and no '.join(missing)}", usage(known))
    return settings(**values)


def usage(known: list[Argument]) -> str:
    """One line: positional arguments, required options, and that there are more."""
    parts = [a.usage if a.required else f"[{a.usage}]" for a in known if a.positional]
    parts += [a.usage for a in known if a.required and not a.positional]
    return " ".join([*parts, "[options]"])


def _split(known, words):
    """The command line as {field: word, or list of words}, and the path after --config."""
    options = {argument.shown: argument for argument in known if not argument.positional}
    given, loose, config, rest = {}, [], None, list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            loose += rest
            break
        if not word.startswith("-") or _is_number(word):
            loose.append(word)
            continue
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        argument = options.get(name)
        if argument is None and name != "--config":
            raise InputError("command line", f"unknown option {name}", _nearest(name, [*options, "--config"]))
        if argument and argument.flag:
            given[argument.name] = value if equals else "true"
            continue
        if not equals and (not rest or rest[0].startswith("--")):
            raise InputError(name, "no value", argument.expected if argument else "a YAML file")
        taken = [value if equals else rest.pop(0)]
        while argument and rest and argument.most != len(taken) and argument.accepts(rest[0]):
            taken.append(rest.pop(0))
        if argument:
            given[argument.name] = taken if argument.most != 1 else taken[0]
        else:
            config = taken[0]
    return given | _bind(known, loose), config


def _bind(known, words):
    """Positional words by field; where the first or the last field takes several, the others take one each."""
    positional = [argument for argument in known if argument.positional]
    if positional and positional[0].most is None:
        cut = max(len(words) - len(positional) + 1, 0)
        words = [words[:cut], *words[cut:]]
    elif positional and positional[-1].most is None:
        words = [*words[: len(positional) - 1], words[len(positional) - 1 :]]
    if len(words) > len(positional):
        raise InputError("command line", f"superfluous {' '.join(words[len(positional) :])}", usage(known))
    return {argument.name: value for argument, value in zip(positional, words, strict=False) if value}


def _load(path, names):
    """A YAML file as {field: value}; a dash in a name is as good as an underscore."""
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(path, "no readable file", "a YAML file of options") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(path, " ".join(str(error).split()), "a YAML file of options") from error
    if not isinstance(content, dict):
        raise InputError(path, "no options", "a YAML file of lines such as `seed: 0`")
    values = {str(name).replace("-", "_"): value for name, value in content.items()}
    for name in values:
        if name not in names:
            raise InputError(path, f"unknown option {name}", _nearest(name, names))
    return values


def _check(argument, value, where):
    """The value as the field's type wants it."""
    from jsonargparse import ArgumentError, ArgumentParser

    if argument.most != 1 and not argument.scalar and not isinstance(value, list | None):
        value = [value]
    if argument.scalar and isinstance(value, list) and len(value) == 1:
        value = value[0]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=argument.hint)
    try:
        if value is None and argument.default is not None:
            raise TypeError("only an option that is off by default can be null")
        return parser.parse_object({"value": value}).value
    except (ArgumentError, TypeError) as error:
        found = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        raise InputError(where, found, argument.expected) from error


def _shape(hint):
    """(type of one word, most words, whether a single word stands for itself) of a field's type."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    options = [option for option in options if option is not type(None)]
    sequences = [option for option in options if get_origin(option) in (tuple, list)]
    if not sequences:
        return options[0], 1, True
    items = get_args(sequences[0])
    endless = get_origin(sequences[0]) is list or Ellipsis in items
    return items[0], None if endless else len(items), len(options) > 1


def _nearest(name, names):
    close = difflib.get_close_matches(name, names, 1)
    return f"{close[0]}, perhaps" if close else f"one of {', '.join(names)}"


def _is_number(word):
    return re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", word) is not None
