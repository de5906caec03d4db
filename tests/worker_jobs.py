"""What tests give to workers: in a module that another process can import by its name alone."""

import os
import warnings

import torch

from mrigsure.errors import InputError, ScanWarning


def reporting_job(path, number, report):
    """A task that tells how far it is."""
    report(0.5)
    return number


def job(path, number):
    """A task: at module level, so that a worker can import it."""
    if number == 1:
        raise InputError(path, "nothing", "something")
    if number == 2:
        raise ZeroDivisionError("by zero")
    if number == 3:
        warnings.warn(f"{path}: odd", ScanWarning, stacklevel=1)
        warnings.warn("of a library", FutureWarning, stacklevel=1)
    return number, os.getpid(), torch.get_num_threads()
