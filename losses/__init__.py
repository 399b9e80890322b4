"""What is minimised: pure torch, no I/O, no Ray, no transformers."""
