#include "cuda/forward.cu"
