"""The command `mrigsure`: each subcommand is a thin shell around one library function and its settings.

Exit status: 0 done, 1 internal error or some of many files failed, 2 bad input or usage, 130 interrupted.
An error or a warning is one line.
"""

import importlib
import os
import sys
import traceback
import warnings
from contextlib import contextmanager
from typing import NamedTuple

from mrigsure import __version__, arguments, helptext, settings
from mrigsure.errors import InputError, PartialFailure, ScanWarning


class Command(NamedTuple):
    """A subcommand: the module of the function so named, its settings, and its positional arguments' names."""

    module: str
    settings: type
    positional: dict[str, str] = {}


COMMANDS = {
    "simulate": Command("mrigsure.simulate", settings.SimulateSettings, {"out": "OUT"}),
    "prepare": Command("data_prep.prepare", settings.PrepareSettings, {"raw": "RAW", "out": "OUT"}),
    "feasibility": Command("mrigsure.feasibility", settings.FeasibilitySettings, {"prepared": "PREPARED"}),
    "train": Command("mrigsure.training", settings.TrainSettings, {"prepared": "PREPARED"}),
    "train-unrolled": Command("recon.train_unrolled", settings.TrainUnrolledSettings, {"prepared": "PREPARED"}),
    "sample": Command("mrigsure.sampling", settings.SampleSettings, {"prior": "PRIOR"}),
    "reconstruct": Command("recon.reconstruct", settings.ReconstructSettings, {"scans": "SCAN"}),
    "export": Command("recon.export", settings.ExportSettings, {"reconstructions": "RECON"}),
    "evaluate": Command("recon.evaluate", settings.EvaluateSettings, {"reconstructions": "RECON"}),
    "inspect": Command("data_prep.inspect", settings.InspectSettings, {"file": "FILE"}),
    "audit": Command("mrigsure.audit", settings.AuditSettings, {"prior": "PRIOR", "scans": "SCAN"}),
    "demo": Command("mrigsure.demo", settings.DemoSettings),
}


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; `argv` without the program's name, sys.argv if not given. Returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    with _one_line_warnings(debug):
        try:
            _run(words)
            return 0
        except KeyboardInterrupt:
            return _fail("interrupted", 130, debug)
        except InputError as error:
            return _fail(str(error), 2, debug)
        except PartialFailure as error:
            return _fail(str(error), 1, debug)
        except OSError as error:  # a folder without write permission, a full disk
            if error.filename is None:
                return _fail(_internal(error), 1, debug)
            return _fail(f"{error.filename}: {error.strerror}", 2, debug)
        except Exception as error:
            return _fail(_internal(error), 1, debug)


def _run(words):
    if not words or words[0] in ("-h", "--help"):
        print(helptext.overview({name: command.settings for name, command in COMMANDS.items()}))
        return
    if words[0] == "--version":
        print(f"mrigsure {__version__}")
        return
    name, *words = words
    if name not in COMMANDS:
        raise InputError("command line", f"unknown command {name}", f"one of {', '.join(COMMANDS)}")
    command = COMMANDS[name]
    known = arguments.arguments(command.settings, command.positional)
    if {"-h", "--help"} & set(words):
        print(helptext.command_help(name, command.settings, known))
        return
    chosen = arguments.parse(command.settings, known, words)
    os.environ["MPLBACKEND"] = "Agg"
    getattr(importlib.import_module(command.module), name.replace("-", "_"))(chosen)


def _fail(message, status, debug):
    if debug:
        traceback.print_exc()
    print("mrigsure: " + " ".join(message.split()), file=sys.stderr)
    return status


def _internal(error):
    return f"internal error: {type(error).__name__}: {error} (run again with --debug)"


@contextmanager
def _one_line_warnings(debug):
    """Show our warnings as one line each, and those of libraries only when debugging."""

    def show(message, category, filename, lineno, file=None, line=None):
        place = "" if issubclass(category, ScanWarning) else f"{filename}:{lineno}: "
        print(f"mrigsure: warning: {place}" + " ".join(str(message).split()), file=sys.stderr)

    with warnings.catch_warnings():
        if not debug:
            warnings.simplefilter("ignore")
        warnings.simplefilter("default", ScanWarning)
        warnings.showwarning = show
        yield


if __name__ == "__main__":
    sys.exit(main())
