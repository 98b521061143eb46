"""What every floor above stands on: errors, files, the console, processes."""
