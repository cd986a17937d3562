"""How tensors are computed: memory, number formats, compiling, capturing in CUDA graphs, several processes."""
