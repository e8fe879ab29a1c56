"""PASS ON: what a run says, to the tools that people already use; each exporter a reader in a process of its own."""
