"""Images: which sets there are, how one is read, augmented and put into batches."""
