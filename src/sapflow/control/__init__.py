"""ACT: who decides what grows, moves on and dies, and how it is done and said."""
