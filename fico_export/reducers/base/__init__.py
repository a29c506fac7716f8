"""What a reducer is made of: its record, its options, and the cues that a site offers."""
