"""Networks: backbone, pool and head, their fixed matrices, their counts and their PyTorch names."""
