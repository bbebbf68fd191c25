"""The control plane: what runs beside the GPU workers and makes things faster, but is never needed."""
