"""Processes that tests start run the Sapflow that the tests import; examples of hypothesis have no deadline."""

import os
from pathlib import Path

from hypothesis import settings

import sapflow
from history_runs import trained as trained

# A loaded machine takes any time for an example: how long one took says nothing of whether the code is right.
settings.register_profile("sapflow", deadline=None)
settings.load_profile("sapflow")

os.environ["PYTHONPATH"] = str(Path(sapflow.__file__).parents[1])
