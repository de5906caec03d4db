"""The command line as its user meets it: help, messages, exit status, and the same options in YAML."""

import dataclasses
import sys
import time
import types
import warnings

import pytest

from mrigsure import arguments, cli
from mrigsure.errors import InputError, ScanWarning

# A full command line of every subcommand, and the same as YAML.
SAME = {
    "simulate": (
        "out --volumes 3 --matrix 230 180 --coils 4 8 --acceleration 4 6 8 --pattern random poisson --noise .1 1e-1",
        "out: out\nvolumes: 3\nmatrix: [230, 180]\ncoils: [4, 8]\nacceleration: [4, 6.0, 8]\n"
        "pattern: [random, poisson]\nnoise: [0.1, 0.1]\n",
    ),
    "prepare": (
        "a.h5 b.h5 out --pattern equispaced --acceleration 6 --center-fraction 0.06 --calibration 24 24 --keep-target",
        "raw: [a.h5, b.h5]\nout: out\npattern: equispaced\nacceleration: 6\ncenter-fraction: 0.06\n"
        "calibration: [24, 24]\nkeep_target: true\n",
    ),
    "train": (
        "scans --out prior --channels 16 32 --weights 1/q --learning-rate 1e-3 --resume",
        'prepared: scans\nout: prior\nchannels: [16, 32]\nweights: "1/q"\nlearning_rate: 1e-3\nresume: true\n',
    ),
    "train-unrolled": (
        "scans --out net --channels 16 32 --unrolls 5 --delta .3",
        "prepared: scans\nout: net\nchannels: [16, 32]\nunrolls: 5\ndelta: 0.3\n",
    ),
    "feasibility": ("a.h5 b.h5 --delta 0", "prepared: [a.h5, b.h5]\ndelta: 0\n"),
    "sample": ("my/prior --matrix 64 --count 2", "prior: my/prior\nmatrix: 64\ncount: 2\n"),
    "reconstruct": (
        "a.h5 --out recons --method cg-sense --samples 4 --batch auto",
        "scans: [a.h5]\nout: recons\nmethod: cg-sense\nsamples: 4\nbatch: auto\n",
    ),
    "export": (
        "recons --out out --format nifti dicom --image magnitude std",
        "reconstructions: [recons]\nout: out\nformat: [nifti, dicom]\nimage: [magnitude, std]\n",
    ),
    "evaluate": ("recons --truth truth", "reconstructions: [recons]\ntruth: truth\n"),
    "inspect": ("a.h5", "file: a.h5\n"),
    "audit": (
        "prior a.h5 b.h5 --against other --samples 4",
        "prior: prior\nscans: [a.h5, b.h5]\nagainst: other\nsamples: 4\n",
    ),
    "demo": ("--smallest --seed 4", "smallest: true\nseed: 4\n"),
}


def parsed(command, words):
    entry = cli.COMMANDS[command]
    return arguments.parse(entry.settings, arguments.arguments(entry.settings, entry.positional), words)


def one_line(text):
    assert text.startswith("mrigsure: ") and text.count("\n") == 1 and text.endswith("\n"), text
    return text


@pytest.fixture
def fake(monkeypatch):
    """Let `mrigsure inspect FILE` call a function of the test's."""

    def install(function):
        monkeypatch.setitem(sys.modules, "fake_inspect", types.SimpleNamespace(inspect=function))
        entry = cli.COMMANDS["inspect"]
        monkeypatch.setitem(cli.COMMANDS, "inspect", entry._replace(module="fake_inspect"))

    return install


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"]])
def test_help_takes_less_than_half_a_second(mrigsure_command, words):
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        assert mrigsure_command(*words).stdout.startswith("usage: mrigsure ")
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5


@pytest.mark.parametrize("command", ["", *cli.COMMANDS])
def test_help_imports_nothing_heavy(python, command):
    words = [command, "--help"] if command else ["--help"]
    code = f"import sys; from mrigsure.cli import main; main({words}); print(sorted(sys.modules), file=sys.stderr)"
    run = python("-c", code)
    assert run.returncode == 0
    for module in ("torch", "numpy", "h5py", "matplotlib", "fastmri", "monai", "sigpy"):
        assert f"'{module}'" not in run.stderr


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_explains_every_field(command, capsys):
    assert cli.main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    entry = cli.COMMANDS[command]
    known = arguments.arguments(entry.settings, entry.positional)
    assert [argument.name for argument in known] == [item.name for item in dataclasses.fields(entry.settings)]
    for argument in known:
        assert argument.help, f"{entry.settings.__name__}.{argument.name} has no line under Args"
        assert f"  {argument.usage} " in shown or f"  {argument.usage}\n" in shown


def test_version(mrigsure_command):
    import mrigsure

    run = mrigsure_command("--version")
    assert (run.returncode, run.stdout) == (0, f"mrigsure {mrigsure.__version__}\n")


@pytest.mark.parametrize("command", SAME)
@pytest.mark.parametrize("dashes", [False, True])
def test_yaml_says_the_same_as_options(tmp_path, command, dashes):
    words, text = SAME[command]
    config = tmp_path / "config.yaml"
    config.write_text(text.replace("_", "-") if dashes else text)
    assert parsed(command, ["--config", str(config)]) == parsed(command, words.split())


def test_the_command_line_wins_over_yaml(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("out: here\nvolumes: 3\nmatrix: 64\n")
    settings = parsed("simulate", ["there", "--config", str(config), "--volumes", "5"])
    assert (settings.out, settings.volumes, settings.matrix) == ("there", 5, 64)


def test_options_take_as_many_words_as_fit_and_leave_the_rest():
    settings = parsed("simulate", ["--acceleration", "4", "6", "8", "--pattern", "random", "gaussian", "out"])
    assert (settings.acceleration, settings.pattern, settings.out) == ((4.0, 6.0, 8.0), ("random", "gaussian"), "out")
    settings = parsed("prepare", ["a", "--calibration", "24", "20", "b", "c"])
    assert (settings.raw, settings.out, settings.calibration) == (["a", "b"], "c", (24, 20))
    settings = parsed("prepare", ["--acceleration=6", "--", "-a", "b"])
    assert (settings.raw, settings.out, settings.acceleration) == (["-a"], "b", 6.0)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("reconstruct a.h5 --out o --samles 3", "--samples"),
        ("reconstruct a.h5 --out o --batch many", "a whole number, or auto"),
        ("reconstruct a.h5 --out o --batch 0", "--batch"),
        ("reconstruct a.h5 --out o --sampler none", "diffpir"),
        ("reconstruct a.h5 --out o --nfe 3", "--nfe"),
        ("simulate out --volumes many", "many"),
        ("simulate out --volumes", "--volumes"),
        ("simulate out --volumes 0", "volumes"),
        ("simulate out --coils 8 4", "coils"),
        ("simulate out --pattern spiral", "spiral"),
        ("simulate out --matrix 64 64 64", "64"),
        ("simulate one two", "two"),
        ("prepare raw.h5", "RAW"),
        ("train scans", "--out"),
        ("train scans --config no.yaml", "no.yaml"),
        ("paint", "paint"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(tmp_path, monkeypatch, capsys, words, named):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words.split()) == 2
    assert named in one_line(capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["volumes: many", "colour: 1", "volumes: null", "- 3", "seed: [", "class_path: x"])
def test_a_wrong_yaml_file_is_named(tmp_path, text):
    config = tmp_path / "config.yaml"
    config.write_text(text)
    with pytest.raises(InputError, match="config.yaml"):
        parsed("simulate", ["out", "--config", str(config)])


@pytest.mark.parametrize(
    "words",
    [
        "prepare missing.h5 made",
        "train missing.h5 --out made",
        "reconstruct missing.h5 --out made",
        "export missing.h5 --out made --format nifti",
        "evaluate missing.h5 --truth missing.h5 --out made",
        "inspect missing.h5",
    ],
)
def test_a_missing_file_is_one_line_and_status_2(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words.split()) == 2
    message = one_line(capsys.readouterr().err)
    assert "missing.h5: found " in message and "; expected " in message
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_missing_prior_is_one_line_and_status_2(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sample", "no-such-prior"]) == 2
    assert "no-such-prior" in one_line(capsys.readouterr().err)


def test_the_traceback_comes_with_debug_only(mrigsure_command, tmp_path):
    plain = mrigsure_command("inspect", "missing.h5", cwd=tmp_path)
    debug = mrigsure_command("inspect", "missing.h5", "--debug", cwd=tmp_path)
    assert plain.returncode == debug.returncode == 2
    one_line(plain.stderr)
    assert "Traceback (most recent call last)" in debug.stderr
    assert debug.stderr.endswith(plain.stderr)


def test_an_unexpected_exception_is_one_line_and_status_1(fake, capsys):
    def broken(settings):
        raise RuntimeError("first\nsecond")

    fake(broken)
    assert cli.main(["inspect", "a"]) == 1
    line = one_line(capsys.readouterr().err)
    assert line == "mrigsure: internal error: RuntimeError: first second (run again with --debug)\n"


def test_an_interrupt_is_one_line_and_status_130(fake, capsys):
    def interrupted(settings):
        raise KeyboardInterrupt

    fake(interrupted)
    assert cli.main(["inspect", "a"]) == 130
    one_line(capsys.readouterr().err)


def test_a_folder_without_permission_is_named(fake, capsys):
    def denied(settings):
        raise PermissionError(13, "Permission denied", settings.file)

    fake(denied)
    assert cli.main(["inspect", "folder"]) == 2
    assert one_line(capsys.readouterr().err) == "mrigsure: folder: Permission denied\n"


def test_our_warnings_are_one_line_and_those_of_libraries_silent(fake, capsys):
    def warns(settings):
        warnings.warn("noise 0.3,\nthe prior saw 0.02 to 0.06", ScanWarning, stacklevel=1)
        warnings.warn("deprecated", FutureWarning, stacklevel=1)

    fake(warns)
    assert cli.main(["inspect", "a"]) == 0
    line = one_line(capsys.readouterr().err)
    assert line == "mrigsure: warning: noise 0.3, the prior saw 0.02 to 0.06\n"
