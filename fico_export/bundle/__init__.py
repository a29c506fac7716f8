"""A bundle on disk: its manifest, its files, their hashes. No torch: a device reads bundles."""
