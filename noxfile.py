"""The tests with every Python that is installed: `nox`."""

import nox

nox.options.default_venv_backend = "venv"


@nox.session(python=["3.10", "3.11", "3.12", "3.13", "3.14"])
def tests(session: nox.Session) -> None:
    """Install the package and run its tests."""
    session.install("-e", ".[test]")
    session.run("pytest", *session.posargs)
