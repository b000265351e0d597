#include "cuda/act_backward.cu"
