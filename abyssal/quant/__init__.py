"""Models in fewer bits: what a weight becomes, and whole folders of them."""
