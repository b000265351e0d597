# Decides whether the CUDA kernels are built, and for which GPUs. Sets MY_OPS_WITH_CUDA, MY_OPS_CUDA_VERSION (empty
# without) and the target my_ops_torch_cuda.
set(MY_OPS_WITH_CUDA OFF)
set(MY_OPS_CUDA_VERSION "")
if(MY_OPS_CUDA STREQUAL "OFF")
  return()
endif()

# What is found as nvcc may be a wrapper around the compiler, which hides its toolkit: nvcc itself knows where it is.
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(MY_OPS_NVCC nvcc HINTS ENV CUDA_HOME PATHS /usr/local/cuda PATH_SUFFIXES bin)
  if(MY_OPS_NVCC)
    execute_process(COMMAND "${MY_OPS_NVCC}" --dryrun -c -x cu /dev/null ERROR_VARIABLE _dryrun OUTPUT_QUIET)
    if(_dryrun MATCHES "_HERE_=([^\n]+)")
      set(CMAKE_CUDA_COMPILER "${CMAKE_MATCH_1}/nvcc")
    endif()
  endif()
endif()

set(_missing "")
if(MY_OPS_TORCH_CUDA STREQUAL "none")
  set(_missing "the torch in ${Python_EXECUTABLE} is a CPU build")
elseif(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  set(_missing "there is no nvcc: set CUDACXX to the one of a CUDA ${MY_OPS_TORCH_CUDA} toolkit")
endif()
if(_missing AND MY_OPS_CUDA STREQUAL "ON")
  message(FATAL_ERROR "my_ops: MY_OPS_CUDA=ON, but ${_missing}.")
elseif(_missing)
  message(STATUS "my_ops: without CUDA kernels (${_missing})")
  return()
endif()

# The GPUs present; without one, what most machines have: sm_80 code also runs on 86 and 89, PTX on what comes later.
if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES "80-real;90a-real;100-real;90-virtual")
  execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
                  OUTPUT_VARIABLE _present OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE _no_gpu)
  if(_no_gpu EQUAL 0 AND _present MATCHES "^[0-9.\n]+$")
    string(REPLACE "." "" _present "${_present}")
    string(REPLACE "\n" ";" _present "${_present}")
    list(REMOVE_DUPLICATES _present)
    list(TRANSFORM _present APPEND "-real")
    string(REPLACE "90-real" "90a-real" CMAKE_CUDA_ARCHITECTURES "${_present}")
  endif()
endif()
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)

string(REGEX MATCH "^[0-9]+" _torch_major "${MY_OPS_TORCH_CUDA}")
if(NOT CUDAToolkit_VERSION_MAJOR EQUAL _torch_major)
  message(FATAL_ERROR "my_ops: torch was built with CUDA ${MY_OPS_TORCH_CUDA}, the toolkit in ${CUDAToolkit_BIN_DIR} is "
                      "${CUDAToolkit_VERSION}: set CUDACXX to the nvcc of a CUDA ${_torch_major} toolkit, or "
                      "MY_OPS_CUDA to OFF.")
endif()

add_library(my_ops_torch_cuda INTERFACE)
target_link_libraries(my_ops_torch_cuda INTERFACE "${MY_OPS_TORCH_DIR}/lib/libtorch_cuda.so"
                                                  "${MY_OPS_TORCH_DIR}/lib/libc10_cuda.so" CUDA::cudart)
set(MY_OPS_WITH_CUDA ON)
set(MY_OPS_CUDA_VERSION "${MY_OPS_TORCH_CUDA}")
message(STATUS "my_ops: CUDA kernels for ${CMAKE_CUDA_ARCHITECTURES}, by ${CMAKE_CUDA_COMPILER}")
