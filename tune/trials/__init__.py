"""How trials run: Ray's processes, their devices, faults, files and reports."""
