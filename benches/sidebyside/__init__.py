"""What `compare.py` is made of: processes, inputs, the work that is measured, the table."""
