"""Where a bundle's time and memory go, measured."""
