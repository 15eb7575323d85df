"""What every room uses and no user needs: files, text, seeds, silence."""
