"""From images and words to what the graphs take: files read, pixels prepared, prompts laid out. All of it without torch."""
