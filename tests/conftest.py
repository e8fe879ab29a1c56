"""Processes that tests start run the Sapflow that the tests import; examples of hypothesis have no deadline."""

import os
from pathlib import Path

from hypothesis import settings

# Before torch is imported, here or in a process that a test starts: threads that wait for each other's share of a small
# tensor do it in a loop, and where there are more of them than cores, they take ten times the time of the work.
os.environ["OMP_NUM_THREADS"] = "1"
# They are many: each would compile all of Sapflow anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import rest as rest
import sapflow
from history_runs import trained as trained

# A loaded machine takes any time for an example: how long one took says nothing of whether the code is right.
settings.register_profile("sapflow", deadline=None)
settings.load_profile("sapflow")

os.environ["PYTHONPATH"] = str(Path(sapflow.__file__).parents[1])
