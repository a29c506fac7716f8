"""What turns the tower's tokens into the decoder's: one file each."""
