"""Training losses: diffusion for teachers, continuous-time consistency for students."""
