// Stands for libtorch_cuda.so where torch is a CPU build: the one function that _C_cuda takes from there. Nothing calls
// it; at run time the libtorch_cuda.so of the user's torch has it.
int aoti_torch_get_current_cuda_stream(int device, void** stream) { return 1; }
