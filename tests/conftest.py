"""Processes that tests start, in whichever directory, run the Sapflow that the tests import."""

import os
from pathlib import Path

import sapflow

os.environ["PYTHONPATH"] = str(Path(sapflow.__file__).parents[1])
