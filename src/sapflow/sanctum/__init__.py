"""SHOW: the terminal app. Textual lives in `app.py` and `widgets/` alone; torch nowhere."""
