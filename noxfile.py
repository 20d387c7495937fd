"""Checks: `nox` runs all of them, `nox -s tests` one, `nox -s nightly coverage` what is slow.

The checks share one environment, which the session `environment` installs; `smoke` has a user's.
"""

import os

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["lint", "types", "tests", "docs", "gpu_dry_run", "smoke"]

PROJECT = nox.project.load_toml("pyproject.toml")
CODE = ("samrobust", "tests", "benchmarks", "noxfile.py")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

check = nox.session(venv_backend="none", requires=["environment"])
"""A session that runs in the shared environment."""


@nox.session(reuse_venv=True, default=False)
def environment(session: nox.Session) -> None:
    """Install the package and what all checks need, and put it first on this process's PATH."""
    # torch has thousands of files, few of which are imported: compiling them all takes minutes
    session.install("--no-compile", "-e", ".", *nox.project.dependency_groups(PROJECT, "dev"))
    # what average precision is compared with; it wants an OpenCV that overwrites the headless one
    session.install("--no-deps", "lvis==0.5.3")
    os.environ["PATH"] = os.pathsep.join([session.bin, os.environ["PATH"]])


@check
def lint(session: nox.Session) -> None:
    """Check style, and that every module imports only from the floors below its own."""
    session.run("ruff", "check", *CODE)
    session.run("ruff", "format", "--check", *CODE)
    session.run("lint-imports", env={"PYTHONPATH": "."})


@check
def types(session: nox.Session) -> None:
    """Check types, strictly."""
    session.run("mypy")


@check
def tests(session: nox.Session) -> None:
    """Run the tests; what needs photographs that are not there is skipped."""
    # fixtures of a file train models: once
    session.run("pytest", "--numprocesses=2", "--dist=loadfile", *session.posargs, env=ONE_THREAD)


@check
def coverage(session: nox.Session) -> None:
    """Run the tests with branch coverage, which takes half as long again."""
    session.notify("tests", ["--cov", "--cov-report=term-missing:skip-covered", *session.posargs])


@check
def nightly(session: nox.Session) -> None:
    """Run the tests that take minutes: models in full size, kills at random moments."""
    session.run("pytest", "-m", "nightly", "--durations=0", *session.posargs, env=ONE_THREAD)


@check
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning is an error."""
    session.run("mkdocs", "build", "--strict", "--site-dir", str(session.cache_dir / "site"))


@check
def gpu_dry_run(session: nox.Session) -> None:
    """Run what measures a GPU on the CPU, as small as it goes, so that it never breaks."""
    out = str(session.cache_dir / "gpu")
    dry = ("--device", "cpu", "--tiny", "--minutes", "30")
    session.run("python", "-m", "benchmarks.gpu", *dry, "--out", out)


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
