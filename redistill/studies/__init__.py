"""Studies: what is compared and shown with the library; nothing of the library leans on them."""
