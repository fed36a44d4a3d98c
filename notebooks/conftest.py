"""How ``pytest --nbval notebooks`` compares.

Chapters run in the environment that papermill gave them. Pictures, figures to pick from, rendered
tables, sentences and the error stream are not compared, the text of every cell is.
"""

import os

from acelib.book.chapters import ENVIRONMENT

SKIPPED = (
    "text/html",
    "text/latex",
    "text/markdown",
    "stderr",
    "image/png",
    "image/svg+xml",
    "application/vnd.plotly.v1+json",
    "application/papermill.record/image/png",
    "application/papermill.record/text/html",
    "application/papermill.record/text/plain",
)


def pytest_configure(config):
    os.environ.update(ENVIRONMENT)


def pytest_collectstart(collector):
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += SKIPPED
