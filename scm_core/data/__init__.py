"""What is read, kept and written: batches, latents, folders, media."""
