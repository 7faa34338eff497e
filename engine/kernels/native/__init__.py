"""Native kernels for a CPU: their C source, and what compiles and loads it."""
