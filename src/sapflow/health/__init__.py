"""JUDGE: what a reading of gradient flow means, and which rules it trips. No torch."""
