"""The operators in Triton: for GPUs without a CUDA compiler, and a second implementation to compare the first with."""
