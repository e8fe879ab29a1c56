"""The widgets of the terminal app; what they draw is made by `formatting.py` and `panels.py`."""
