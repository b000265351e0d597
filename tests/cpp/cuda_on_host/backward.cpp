#include "cuda/backward.cu"
