"""`make bench-serve-gpu`: kvrelay on the GPUs of this host, beside SGLang or vLLM."""
