"""What is measured: rows, metrics, reports."""
