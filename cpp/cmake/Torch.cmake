# Target my_ops_torch: headers and libraries of the torch that the Python interpreter imports.
#
# torch's own TorchConfig.cmake wants a complete CUDA toolkit as soon as torch was built with CUDA; asking the
# interpreter works alike for the CPU and the CUDA build, with or without a toolkit.
find_package(Python 3.11 REQUIRED COMPONENTS Interpreter)
execute_process(
  COMMAND "${Python_EXECUTABLE}" -c
          "import torch; print(torch.__path__[0], torch.__version__, torch.version.cuda or 'none', sep=';')"
  OUTPUT_VARIABLE _torch
  ERROR_VARIABLE _torch_error
  RESULT_VARIABLE _torch_failed
  OUTPUT_STRIP_TRAILING_WHITESPACE)
if(_torch_failed)
  message(FATAL_ERROR "my_ops needs torch in ${Python_EXECUTABLE}: run 'make build', "
                      "or 'pip install torch==2.13.0' there (any of 2.11 to 2.14 works).\n${_torch_error}")
endif()
list(GET _torch 0 MY_OPS_TORCH_DIR)
list(GET _torch 1 MY_OPS_TORCH_VERSION)
list(GET _torch 2 MY_OPS_TORCH_CUDA)
if(MY_OPS_TORCH_VERSION VERSION_LESS 2.11)
  message(FATAL_ERROR "my_ops needs torch 2.11 or newer, found ${MY_OPS_TORCH_VERSION} in ${Python_EXECUTABLE}: "
                      "run 'pip install torch==2.13.0' there.")
endif()

add_library(my_ops_torch INTERFACE)
target_include_directories(my_ops_torch SYSTEM INTERFACE "${MY_OPS_TORCH_DIR}/include"
                                                         "${MY_OPS_TORCH_DIR}/include/torch/csrc/api/include")
target_link_directories(my_ops_torch INTERFACE "${MY_OPS_TORCH_DIR}/lib")
target_link_libraries(my_ops_torch INTERFACE torch torch_cpu c10)

# at::parallel_for is a template over OpenMP pragmas. Link the very runtime that torch ships: a second one would be a
# second thread pool, spinning against the first.
file(GLOB _torch_gomp "${MY_OPS_TORCH_DIR}/lib/libgomp*.so*" "${MY_OPS_TORCH_DIR}/../torch.libs/libgomp*.so*"
     "${MY_OPS_TORCH_DIR}/lib/libiomp5.so")
if(_torch_gomp)
  list(GET _torch_gomp 0 _torch_gomp)
  target_compile_options(my_ops_torch INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fopenmp>)
  target_link_libraries(my_ops_torch INTERFACE "${_torch_gomp}")
else()
  find_package(OpenMP REQUIRED COMPONENTS CXX)
  target_link_libraries(my_ops_torch INTERFACE OpenMP::OpenMP_CXX)
endif()
message(STATUS "my_ops: torch ${MY_OPS_TORCH_VERSION} in ${MY_OPS_TORCH_DIR}, CUDA ${MY_OPS_TORCH_CUDA}")
