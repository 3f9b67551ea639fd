"""Models in fewer bits: what a weight becomes; folders in other formats, and looked into."""
