"""The reference runtime: tasks, hosts with slots that train on them, and the runs that hold many."""
