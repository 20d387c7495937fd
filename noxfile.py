"""Checks: `nox` runs all of them, `nox -s tests` one."""

import nox

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "types", "tests", "smoke"]

PROJECT = nox.project.load_toml("pyproject.toml")
CODE = ("samrobust", "tests", "benchmarks", "noxfile.py")


def install_project(session: nox.Session) -> None:
    # torch has thousands of files, few of which are imported: compiling them all takes minutes
    session.install("--no-compile", "-e", ".")


def install_group(session: nox.Session, group: str) -> None:
    session.install(*nox.project.dependency_groups(PROJECT, group))


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, and that every module imports only from the floors below its own."""
    install_group(session, "lint")
    session.run("ruff", "check", *CODE)
    session.run("ruff", "format", "--check", *CODE)
    session.run("lint-imports", env={"PYTHONPATH": "."})


@nox.session
def types(session: nox.Session) -> None:
    """Check types, strictly."""
    install_project(session)
    install_group(session, "types")
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests with branch coverage; what needs photographs that are not there is skipped."""
    install_project(session)
    install_group(session, "test")
    session.run(
        "pytest",
        "--cov",
        "--cov-report=term-missing:skip-covered",
        "--numprocesses=2",
        "--dist=loadfile",  # fixtures of a file train models: once
        *session.posargs,
        env={"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
    )


@nox.session
def smoke(session: nox.Session) -> None:
    """Install as a user does, and run the commands of the README."""
    session.install(".")
    session.chdir(session.create_tmp())
    session.run("samrobust", "--version")
    session.run("samrobust", "eval", "--protocol", "noisy-box", "--out", "results")
    session.run("bash", "-c", "samrobust report results/* --out report", external=True)
    session.run("bash", "-c", "samrobust report results/* --format html", external=True)
    session.run("bash", "-c", "samrobust compare results/*nano* results/*ellipse*", external=True)
    session.run("samrobust", "ls", "protocols")
    session.run("samrobust", "train", "sam-nano", "--scale-steps", "0.0005")
    session.run("samrobust", "train", "stable-sam", "--scale-steps", "0.01")
    session.run("samrobust", "train", "hq-sam", "--recipe", "robust", "--scale-steps", "0.01")
    session.run("samrobust", "ls", "segmenters")
    session.run("samrobust", "draw", "reading", "--count", "2")
