"""Native CPU kernels in C++, built on demand (`hybridlm doctor --build`); see `build`."""
