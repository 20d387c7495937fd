"""What happens to the masks of promptable segmenters when the prompts are not perfect.

The same door as the command line:

    from samrobust import evaluate, summarise

    runs = evaluate(["ellipse", "sam-nano"], "scenes", "noisy-box")
    print(summarise(runs)[0].table)
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.2.0"

if TYPE_CHECKING:
    from samrobust.datasets import open_dataset
    from samrobust.evaluation.runner import evaluate
    from samrobust.prompt_files import load_prompts
    from samrobust.protocol import load_protocol
    from samrobust.report.compare import compare
    from samrobust.report.summary import summarise
    from samrobust.runs.store import read_run, read_runs
    from samrobust.segmenters import build_segmenter

__all__ = [
    "__version__",
    "build_segmenter",
    "compare",
    "evaluate",
    "load_prompts",
    "load_protocol",
    "open_dataset",
    "read_run",
    "read_runs",
    "summarise",
]
_HOMES = {
    "build_segmenter": "samrobust.segmenters",
    "compare": "samrobust.report.compare",
    "evaluate": "samrobust.evaluation.runner",
    "load_prompts": "samrobust.prompt_files",
    "load_protocol": "samrobust.protocol",
    "open_dataset": "samrobust.datasets",
    "read_run": "samrobust.runs.store",
    "read_runs": "samrobust.runs.store",
    "summarise": "samrobust.report.summary",
}


def __getattr__(name: str) -> object:
    """Import a public function when it is first used: `import samrobust` itself is light."""
    if name not in _HOMES:
        raise AttributeError(f"module 'samrobust' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
