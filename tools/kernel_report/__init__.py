"""What can be known of Triton kernels without a GPU: their compiled code, bytes and FLOPs, host time, time bounds."""
