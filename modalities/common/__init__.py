"""What the modalities share; none of them imports another."""
