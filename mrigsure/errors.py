"""The three things that mrigsure says when it cannot or should not go on quietly."""


class InputError(Exception):
    """Bad input, said in one line: the file, what was found, what was expected. The command exits with status 2."""

    def __init__(self, where, found: str, expected: str):
        super().__init__(f"{where}: found {found}; expected {expected}")
        self.where, self.found, self.expected = str(where), found, expected

    def __reduce__(self):  # a worker's error travels to the process that reports it
        return InputError, (self.where, self.found, self.expected)


class ScanWarning(UserWarning):
    """The input can be used, but the user should know what is unusual about it, with the figures."""


class PartialFailure(Exception):
    """Some of many files failed, each was reported, and the others are done. The command exits with status 1."""
