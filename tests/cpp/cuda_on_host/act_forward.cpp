#include "cuda/act_forward.cu"
