"""Lint, tests, site and package under one command: ``nox -s lint``, ``nox -s tests -- tests/buffer``, ``nox -l``."""

import nox

nox.options.sessions = ["lint", "fast"]
nox.options.reuse_existing_virtualenvs = True

FAST = ["tests/schema", "tests/spaces", "tests/files", "tests/buffer", "tests/wrappers", "tests/test_architecture.py"]


def install(session: nox.Session, extras: str) -> None:
    """Install the checkout with extras, and the PyTorch that it is tested with."""
    session.install("-c", "constraints.txt", "-e", f".[{extras}]")


@nox.session
def lint(session: nox.Session) -> None:
    """Style, format, types."""
    install(session, "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """The whole suite, or the files and options after ``--``."""
    install(session, "test")
    session.run("python", "-m", "pytest", "-n", "2", *session.posargs)


@nox.session
def fast(session: nox.Session) -> None:
    """What most changes can break."""
    install(session, "test")
    session.run("python", "-m", "pytest", "-n", "2", *FAST, *session.posargs)


def script_of_ci(name: str, what: str) -> None:
    """Make a session of a script of CI, which makes environments of its own."""

    def run(session: nox.Session) -> None:
        session.run("bash", f".ci/{name}", *session.posargs, external=True)

    run.__doc__ = what
    nox.session(run, name=name, venv_backend="none")


script_of_ci("docs", "The site, in build/site.")
script_of_ci("package", "Wheel and sdist: made, checked, installed alone.")
script_of_ci("interop", "Tests with the real packages of other formats and environments.")
script_of_ci("view", "Tests of the page in a real browser.")
