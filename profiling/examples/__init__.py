"""Models to try the tools on."""
