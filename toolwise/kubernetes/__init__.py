"""What the pods of training and of serving have in common."""
