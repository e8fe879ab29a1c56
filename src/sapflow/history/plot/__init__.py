"""A run's pictures, for notebooks and reports: each function takes runs of `sapflow.open_run` and returns a Chart.

A chart is a Matplotlib figure that brings its `title`, a `description` in words and the drawn `data` (an Arrow table)
along. Colours are Okabe and Ito's; every series has a shape or a dash, too. What was not measured, and what is not
finite, is drawn as that: on rails of its own, never as 0 and never as healthy.
"""

from sapflow.errors import MissingExtraError

try:
    import matplotlib  # noqa: F401
except ModuleNotFoundError as error:
    raise MissingExtraError("sapflow.plot", "report") from error

from sapflow.history.plot.accuracy import accuracy
from sapflow.history.plot.alerts import alerts
from sapflow.history.plot.chart import Chart
from sapflow.history.plot.comparison import compare, fates
from sapflow.history.plot.distribution import distribution
from sapflow.history.plot.flow import flow
from sapflow.history.plot.lives import lives
from sapflow.history.plot.ratio import ratio

__all__ = ["Chart", "accuracy", "alerts", "compare", "distribution", "fates", "flow", "lives", "ratio"]
