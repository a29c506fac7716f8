"""What a bundle keeps of an image, drawn over it; and a page of all that is known about bundles."""
