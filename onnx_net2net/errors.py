"""What can go wrong, by the exit code that the command line gives it."""

from onnx_net2net.messages import shown


class Net2NetError(Exception):
    """Base of every error this package raises on purpose; its text is one line meant for the user."""

    exit_code = 2

    def __str__(self) -> str:
        """Return the text in one line, with what names of a file have in them escaped."""
        return shown(super().__str__())


class NotEquivalentError(Net2NetError):
    """The student does not compute what the teacher computes (exit 1)."""

    exit_code = 1


class BadInputError(Net2NetError):
    """The file, model, option or path cannot be used (exit 2)."""

    exit_code = 2


class RefusedError(Net2NetError):
    """A sound request on a sound model that cannot be done exactly (exit 3)."""

    exit_code = 3
