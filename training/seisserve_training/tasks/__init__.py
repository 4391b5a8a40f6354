"""What a network learns: windows and targets from the pool of traces, the loss, the score on dev. One a module."""
