# Target my_ops_torch: headers and libraries of the torch that the Python interpreter imports. Sets MY_OPS_TORCH_DIR,
# MY_OPS_TORCH_VERSION, MY_OPS_TORCH_MAJOR and _MINOR, and MY_OPS_TORCH_CUDA (none for a CPU build).
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

string(REGEX MATCH "^([0-9]+)\\.([0-9]+)" _version "${MY_OPS_TORCH_VERSION}")
set(MY_OPS_TORCH_MAJOR ${CMAKE_MATCH_1})
set(MY_OPS_TORCH_MINOR ${CMAKE_MATCH_2})

include(TorchFolder)
my_ops_add_torch(my_ops_torch "${MY_OPS_TORCH_DIR}")
message(STATUS "my_ops: torch ${MY_OPS_TORCH_VERSION} in ${MY_OPS_TORCH_DIR}, CUDA ${MY_OPS_TORCH_CUDA}")
