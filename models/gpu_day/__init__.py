"""What `python -m models gpu-day` runs: stages that check, measure and train on a GPU that is lent for minutes."""
