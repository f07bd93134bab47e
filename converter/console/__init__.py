"""What every command needs of a terminal: streams, progress, signals, and errors as one line."""
