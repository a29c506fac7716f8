"""What a bundle keeps of a picture, drawn over it; and a page of all that is known about bundles."""
