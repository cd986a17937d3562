"""How tensors are computed on a machine: devices' memory, number formats, compiling, capturing, several processes."""
