"""Work on data sets and trained weights beside training: the commands `data` and `predict`."""
