"""Model families: one file each, config.json to parts. The folder is the registry."""
