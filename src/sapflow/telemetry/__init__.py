"""SAY: the contract of Sapflow's telemetry, and how it is kept and read back. No torch."""
